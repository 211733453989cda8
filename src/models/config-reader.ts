// Typed access to the keys of a config.json: every error names file and key, what was got and what was wanted.
import { describe, FileFormatError, isObject, type JsonObject } from '../core/json.ts';
import { type FloatDType, isFloating, parseDType } from '../tensor/dtype.ts';

/** Reads one JSON object. `null` counts as absent, as in Transformers. Without a default, an absent key is an error. */
export class ConfigReader {
  readonly file: string;
  readonly json: JsonObject;
  /** Keys that were read as numbers which need not be whole, also those of nested objects. */
  readonly floatKeys: ReadonlySet<string>;
  readonly #floatKeys: Set<string>;
  readonly #prefix: string;

  constructor(json: JsonObject, file: string, prefix = '', floatKeys: Set<string> = new Set()) {
    this.json = json;
    this.file = file;
    this.#prefix = prefix;
    this.floatKeys = this.#floatKeys = floatKeys;
  }

  has(key: string): boolean {
    return Object.hasOwn(this.json, key) && this.json[key] !== null && this.json[key] !== undefined;
  }

  get(key: string): unknown {
    return this.has(key) ? this.json[key] : undefined;
  }

  /** The error of a bad value. */
  bad(key: string, wanted: string): FileFormatError {
    return new FileFormatError(this.file, `${this.#prefix}${key} must be ${wanted}, got ${describe(this.get(key))}`);
  }

  #read<T>(key: string, fallback: T | undefined, wanted: string, accepts: (value: unknown) => boolean): T {
    const value = this.get(key);
    if (value === undefined && fallback !== undefined) return fallback;
    if (!accepts(value)) throw this.bad(key, wanted);
    return value as T;
  }

  /** A whole number from 1. */
  size(key: string, fallback?: number): number {
    return this.#read(key, fallback, 'a whole number from 1', (v) => Number.isSafeInteger(v) && (v as number) >= 1);
  }

  /** A whole number from 1, or null for none; null is a value of its own here. */
  sizeOrNull(key: string, fallback: number | null): number | null {
    if (!Object.hasOwn(this.json, key)) return fallback;
    return this.has(key) ? this.size(key) : null;
  }

  /** A whole number from 0. */
  count(key: string, fallback?: number): number {
    return this.#read(key, fallback, 'a whole number from 0', (v) => Number.isSafeInteger(v) && (v as number) >= 0);
  }

  /** A finite number above 0. */
  positive(key: string, fallback?: number): number {
    this.#floatKeys.add(key);
    return this.#read(key, fallback, 'a number above 0', (v) => Number.isFinite(v) && (v as number) > 0);
  }

  /** A finite number from 0. */
  nonNegative(key: string, fallback?: number): number {
    this.#floatKeys.add(key);
    return this.#read(key, fallback, 'a number from 0', (v) => Number.isFinite(v) && (v as number) >= 0);
  }

  boolean(key: string, fallback?: boolean): boolean {
    return this.#read(key, fallback, 'true or false', (v) => typeof v === 'boolean');
  }

  string(key: string, fallback?: string): string {
    return this.#read(key, fallback, 'a string', (v) => typeof v === 'string');
  }

  /** An array of strings, undefined if absent. */
  strings(key: string): readonly string[] | undefined {
    if (!this.has(key)) return undefined;
    const accepts = (v: unknown) => Array.isArray(v) && v.every((s) => typeof s === 'string');
    return this.#read<readonly string[]>(key, undefined, 'an array of strings', accepts);
  }

  /** An array of `length` of the `supported` strings, undefined if absent. */
  choices<T extends string>(key: string, supported: readonly T[], length: number): readonly T[] | undefined {
    if (!this.has(key)) return undefined;
    const wanted = `an array of ${length} of ${supported.map((s) => `"${s}"`).join(', ')}`;
    const accepts = (v: unknown) => Array.isArray(v) && v.length === length && v.every((s) => supported.includes(s));
    return this.#read<readonly T[]>(key, undefined, wanted, accepts);
  }

  /** One of `supported`. */
  choice<T extends string>(key: string, supported: readonly T[], fallback?: T): T {
    const wanted = `${supported.length > 1 ? 'one of ' : ''}${supported.map((s) => `"${s}"`).join(', ')} (supported here)`;
    return this.#read<T>(key, fallback, wanted, (v) => supported.includes(v as T));
  }

  /** A token id; null means that there is none, and so does a negative number (old files have -1). */
  tokenId(key: string, fallback: number | null): number | null {
    if (!Object.hasOwn(this.json, key)) return fallback;
    if (!this.has(key)) return null;
    const id = this.#read<number>(key, undefined, 'a token id or null', Number.isSafeInteger);
    return id < 0 ? null : id;
  }

  /** One or several token ids. */
  tokenIds(key: string, fallback: number | null): number | readonly number[] | null {
    const value = this.get(key);
    if (!Array.isArray(value)) return this.tokenId(key, fallback);
    if (value.length === 0 || !value.every((id) => Number.isSafeInteger(id) && id >= 0)) {
      throw this.bad(key, 'a token id, an array of token ids, or null');
    }
    return value as number[];
  }

  /** A nested object, undefined if absent. */
  object(key: string): ConfigReader | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (!isObject(value)) throw this.bad(key, 'an object');
    return new ConfigReader(value, this.file, `${this.#prefix}${key}.`, this.#floatKeys);
  }

  /** `dtype` or the older `torch_dtype`; float32 if neither is there. */
  dtype(): FloatDType {
    const key = this.has('dtype') ? 'dtype' : 'torch_dtype';
    const name = this.get(key) ?? 'float32';
    const dtype = typeof name === 'string' ? parseDType(name) : undefined;
    if (!dtype || !isFloating(dtype)) throw this.bad(key, '"float32", "bfloat16" or "float16"');
    return dtype;
  }
}
