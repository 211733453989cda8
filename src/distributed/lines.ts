// Cuts a stream of text into whole lines, so that the output of several ranks does not mix within a line.
import { StringDecoder } from 'node:string_decoder';

export class LineSplitter {
  private readonly decoder = new StringDecoder('utf8');
  private rest = '';
  private readonly emit: (line: string) => void;

  /** `emit` gets each line with its newline. */
  constructor(emit: (line: string) => void) {
    this.emit = emit;
  }

  write(chunk: Buffer): void {
    const lines = (this.rest + this.decoder.write(chunk)).split('\n');
    this.rest = lines.pop()!;
    for (const line of lines) this.emit(`${line}\n`);
  }

  /** Emits what came without a last newline. */
  end(): void {
    const rest = this.rest + this.decoder.end();
    this.rest = '';
    if (rest !== '') this.emit(`${rest}\n`);
  }
}
