// JSONL training data: one JSON object a line, as `text`, `prompt` and `completion`, or `messages`.
// Errors name file, line and key. Blank lines are skipped; the file is read in pieces.
import { createReadStream } from 'node:fs';
import { describe, FileFormatError, isObject, parseJson } from '../core/json.ts';
import type { ChatMessage } from './chat-template.ts';

/** A line of a data file. */
export type DataRecord =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'completion'; readonly prompt: string; readonly completion: string }
  | { readonly kind: 'messages'; readonly messages: readonly ChatMessage[] };

/** A record and the line it came from, from 1. */
export interface NumberedRecord {
  readonly line: number;
  readonly record: DataRecord;
}

/** Reads the records of a file in order. */
export async function* readJsonl(path: string): AsyncGenerator<NumberedRecord> {
  let line = 0;
  for await (const text of readLines(path)) {
    line++;
    if (text.trim() === '') continue;
    const place = `${path}:${line}`;
    yield { line, record: parseRecord(parseJson(text, place), place) };
  }
}

/** Lines end at \n (a \r before it belongs to it) and nowhere else: JSON text may hold U+2028. */
async function* readLines(path: string): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true });
  let rest = '';
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 18 })) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split('\n');
      rest = lines.pop()!;
      yield* lines;
    }
    rest += decoder.decode();
  } catch (cause) {
    if (cause instanceof TypeError) throw new FileFormatError(path, 'the file is not UTF-8', { cause });
    throw cause;
  }
  if (rest !== '') yield rest;
}

/** Checks one parsed line; `place` is the file and line for errors. */
export function parseRecord(json: unknown, place: string): DataRecord {
  const bad = (problem: string) => new FileFormatError(place, problem);
  if (!isObject(json)) throw bad(`each line must hold a JSON object, got ${describe(json)}`);
  const forms = ['messages', 'completion', 'text'].filter((key) => Object.hasOwn(json, key));
  if (forms.length !== 1) {
    const got =
      forms.length > 1
        ? `has both ${forms.join(' and ')}`
        : `has ${Object.keys(json).slice(0, 5).join(', ') || 'no key'}`;
    throw bad(`a line holds "text", or "prompt" and "completion", or "messages"; this one ${got}`);
  }
  const string = (key: string): string => {
    const value = json[key];
    if (typeof value !== 'string') throw bad(`"${key}" must be a string, got ${describe(value)}`);
    return value;
  };
  if (forms[0] === 'text') return { kind: 'text', text: string('text') };
  if (forms[0] === 'completion')
    return { kind: 'completion', prompt: string('prompt'), completion: string('completion') };

  const messages = json.messages;
  if (!Array.isArray(messages) || messages.length === 0) {
    throw bad(`"messages" must be an array with at least one message, got ${describe(messages)}`);
  }
  messages.forEach((message: unknown, i) => {
    if (!isObject(message)) throw bad(`"messages[${i}]" must be an object, got ${describe(message)}`);
    for (const key of ['role', 'content']) {
      if (typeof message[key] !== 'string') {
        throw bad(`"messages[${i}].${key}" must be a string, got ${describe(message[key])}`);
      }
    }
  });
  return { kind: 'messages', messages: messages as ChatMessage[] };
}
