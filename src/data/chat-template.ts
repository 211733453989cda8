// Chat templates: Jinja text that turns messages into one string, as Transformers renders it.
import { createRequire } from 'node:module';
import type { Template } from '@huggingface/jinja';

// Loaded when the first template is made: `import 'rankzero'` does not wait for it.
const require = createRequire(import.meta.url);

/** One turn of a conversation. Other keys (`name`, `tool_calls`, …) reach the template too. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
  readonly [key: string]: unknown;
}

export interface RenderOptions {
  /** Ends with the header of an assistant turn, so that the model answers. */
  readonly addGenerationPrompt?: boolean | undefined;
  /** More variables for the template (`tools`, `enable_thinking`, …). */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

/** A compiled chat template. `trim_blocks` and `lstrip_blocks` are on, as in Transformers. */
export class ChatTemplate {
  readonly source: string;
  readonly #template: Template;
  readonly #variables: Readonly<Record<string, unknown>>;

  /** `origin` is the file, for errors; `variables` are bos_token, eos_token, …. */
  constructor(source: string, origin: string, variables: Readonly<Record<string, unknown>> = {}) {
    this.source = source;
    this.#variables = variables;
    try {
      const { Template: Parsed } = require('@huggingface/jinja') as typeof import('@huggingface/jinja');
      this.#template = new Parsed(source);
    } catch (cause) {
      throw new Error(`${origin}: the chat template is not valid: ${(cause as Error).message}`, { cause });
    }
  }

  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    const { addGenerationPrompt = false, variables } = options;
    try {
      return this.#template.render({
        ...this.#variables,
        ...variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new Error(`the chat template refuses these messages: ${(cause as Error).message}`, { cause });
    }
  }
}
