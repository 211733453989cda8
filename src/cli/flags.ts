// Commander's options made from the schema of finetune, and the config file that stands beside them.
import { readFileSync } from 'node:fs';
import { extname } from 'node:path';
import { type Command, Option } from 'commander';
import type { FinetuneOptions } from '../train/options.ts';
import {
  finetuneFields,
  flagOf,
  type OptionField,
  OptionsError,
  parseFinetuneOptions,
} from '../train/options_schema.ts';

function describe(field: OptionField): string {
  const value = field.default;
  const shown = value === undefined || typeof value === 'boolean' || (Array.isArray(value) && value.length === 0);
  const small = typeof value === 'number' && value > 0 && value < 1e-3;
  return shown ? field.help : `${field.help} (default: ${small ? value.toExponential() : String(value)})`;
}

const allKeys = Object.keys(finetuneFields) as (keyof FinetuneOptions)[];

/** Adds a flag for every field of `keys`, and `--no-…` for every boolean. The help shows the one that changes the default. */
export function addFinetuneFlags(command: Command, keys: readonly (keyof FinetuneOptions)[] = allKeys): void {
  for (const key of keys) {
    const field = finetuneFields[key] as OptionField;
    const flag = flagOf(key);
    if (field.value !== undefined) {
      const option = new Option(`--${flag} ${field.value}`, describe(field)).helpGroup(`${field.group}:`);
      if (Array.isArray(field.default) && field.value === '<text>') {
        option.argParser((value: string, earlier: string[] | undefined) => [...(earlier ?? []), value]);
      }
      command.addOption(option);
    } else {
      for (const [name, shown] of [
        [`--${flag}`, field.default !== true],
        [`--no-${flag}`, field.default === true],
      ] as const) {
        const help = field.default === true ? `do not ${field.help}` : field.help;
        command.addOption(new Option(name, help).helpGroup(`${field.group}:`).hideHelp(!shown));
      }
    }
  }
}

/** The top-level keys of a YAML or JSON file. */
export async function readConfigFile(path: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new OptionsError(`--config: cannot read ${path}: ${(cause as Error).message}`);
  }
  let value: unknown;
  try {
    value = extname(path) === '.json' ? JSON.parse(text) : (await import('yaml')).parse(text);
  } catch (cause) {
    throw new OptionsError(`--config: ${path}: ${(cause as Error).message}`);
  }
  if (value === null) return {};
  if (typeof value !== 'object' || Array.isArray(value)) {
    throw new OptionsError(
      `--config: ${path}: wanted keys and values, got ${Array.isArray(value) ? 'a list' : typeof value}`,
    );
  }
  return value as Record<string, unknown>;
}

/** Options as they were written. */
export interface GivenOptions {
  values: Record<string, unknown>;
  /** Names a key as the user wrote it: the flag, or the key of the file. */
  where(key: string): string;
}

/** Parsed flags and, below them, the file of `--config`. */
export async function givenOptions({ config, ...given }: Record<string, unknown>): Promise<GivenOptions> {
  const flags = { ...given };
  if (flags.resume === true) flags.resume = 'auto';
  const file = typeof config === 'string' ? await readConfigFile(config) : {};
  const flagNames = new Set(Object.keys(flags).map((name) => flagOf(name)));
  const fileNames = new Set(Object.keys(file).flatMap((name) => [name, flagOf(name)]));
  const where = (key: string): string => {
    const flag = flagOf(key);
    return !flagNames.has(flag) && (fileNames.has(flag) || fileNames.has(key)) ? `${config}: ${key}` : `--${flag}`;
  };
  return { values: { ...file, ...flags }, where };
}

/** Options from parsed flags and the file. Messages name the flag or the key of the file. */
export async function resolveFlags(given: Record<string, unknown>): Promise<FinetuneOptions> {
  const { values, where } = await givenOptions(given);
  return parseFinetuneOptions(values, where);
}
