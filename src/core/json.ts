// JSON as users write it in files: every error names the file and the place.
import { readFile } from 'node:fs/promises';

/** An error in a file of the user's: the message names the file and what is wrong. */
export class FileFormatError extends Error {
  override name = 'FileFormatError';
  readonly code = 'ERR_FILE_FORMAT';
  readonly file: string;
  constructor(file: string, problem: string, options?: ErrorOptions) {
    super(`${file}: ${problem}`, options);
    this.file = file;
  }
}

export type JsonObject = { [key: string]: unknown };

/** What a value is, for messages: `a string "x"`, `3`, `null`, `an array`. */
export function describe(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (typeof value === 'string') return `"${value.length > 40 ? `${value.slice(0, 40)}…` : value}"`;
  if (Array.isArray(value)) return value.length <= 4 ? JSON.stringify(value) : `an array of ${value.length}`;
  if (typeof value === 'object' && value !== null) return 'an object';
  return String(value);
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Parses `text` of `file`. Error: FileFormatError with line and column. */
export function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    const message = (cause as Error).message;
    const position = errorPosition(text, message);
    const problem = message
      .replace(/ in JSON at position \d+.*$/, '')
      .replace(/ at position \d+.*$/, '')
      .replace(/, (\.\.\.)?".*$/s, '');
    const before = text.slice(0, position).split('\n');
    const place = `line ${before.length}, column ${before[before.length - 1]!.length + 1}`;
    throw new FileFormatError(file, `not valid JSON at ${place}: ${problem}`, { cause });
  }
}

/** Where JSON.parse stopped. Its messages about unexpected tokens do not say: the shortest failing prefix ends there. */
function errorPosition(text: string, message: string): number {
  const stated = /at position (\d+)/.exec(message);
  if (stated) return Number(stated[1]);
  if (!message.startsWith('Unexpected token')) return text.length;
  let good = 0;
  let bad = text.length;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    try {
      JSON.parse(text.slice(0, middle));
      good = middle;
    } catch (error) {
      if ((error as Error).message.startsWith('Unexpected token')) bad = middle;
      else good = middle;
    }
  }
  return good;
}

/** Reads a JSON file whose top level is an object. */
export async function readJsonObject(file: string): Promise<JsonObject> {
  const json = parseJson(await readFile(file, 'utf8'), file);
  if (!isObject(json)) throw new FileFormatError(file, `must hold a JSON object, got ${describe(json)}`);
  return json;
}
