// A connection between two launchers of a job: lines of JSON, after both ends have proved that they hold the job's secret.
// Each line carries its own proof, so that nobody on the way can add or change one; a stranger is cut off after 10 seconds.
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Socket } from 'node:net';
import { StringDecoder } from 'node:string_decoder';

/** Milliseconds for a stranger to prove what it is. */
const patience = 10_000;
const greeting = 'rankzero-launcher-1';
/** Characters of a line: of a stranger, and of a launcher, which may send the stack of an error. */
const longest = { stranger: 256, launcher: 1 << 20 };

/** What came is not what a launcher with this secret sends. */
export class StrangerError extends Error {
  /** It left without a word: nobody knows what it was. */
  readonly isClosed: boolean;

  constructor(message: string, isClosed = false) {
    super(message);
    this.isClosed = isClosed;
  }
}

type Role = 'server' | 'client';

const digest = (key: string | Buffer, ...parts: string[]): Buffer =>
  createHmac('sha256', key).update(parts.join('\n')).digest();

function isProof(text: string, wanted: Buffer): boolean {
  const got = Buffer.from(text, 'hex');
  return got.length === wanted.length && timingSafeEqual(got, wanted);
}

/** Lines of a socket, one at a time. */
class Lines {
  limit: number = longest.stranger;
  private readonly chunks: AsyncIterator<Buffer>;
  private readonly decoder = new StringDecoder('utf8');
  private rest = '';

  constructor(socket: Socket) {
    this.chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  /** Undefined at the end of the connection, whichever way it ended. */
  async next(): Promise<string | undefined> {
    for (;;) {
      const end = this.rest.indexOf('\n');
      if (end > this.limit || (end < 0 && this.rest.length > this.limit)) throw new StrangerError('a line is too long');
      if (end >= 0) {
        const line = this.rest.slice(0, end);
        this.rest = this.rest.slice(end + 1);
        return line;
      }
      const chunk = await this.chunks.next().catch(() => undefined);
      if (!chunk || chunk.done) return undefined;
      this.rest += this.decoder.write(chunk.value);
    }
  }
}

async function prove(socket: Socket, lines: Lines, secret: string, role: Role): Promise<Buffer> {
  const nonce = randomBytes(32).toString('hex');
  const isServer = role === 'server';
  if (isServer) socket.write(`${greeting} ${nonce}\n`);
  const first = await lines.next();
  const match = (isServer ? /^([\da-f]{64}) ([\da-f]{64})$/ : /^(rankzero-launcher-1) ([\da-f]{64})$/).exec(
    first ?? '',
  );
  if (!match) {
    const isClosed = first === undefined;
    throw new StrangerError(
      isClosed ? 'the connection was closed' : 'what listens there is no launcher of rankzero',
      isClosed,
    );
  }
  const nonces = isServer ? [nonce, match[1]!] : [match[2]!, nonce];
  const proof = (of: Role): Buffer => digest(secret, of, ...nonces);
  if (isServer) {
    if (!isProof(match[2]!, proof('client'))) throw new StrangerError('it does not hold the secret of this job');
    socket.write(`${proof('server').toString('hex')}\n`);
  } else {
    socket.write(`${nonce} ${proof('client').toString('hex')}\n`);
    const answer = await lines.next();
    if (answer === undefined || !isProof(answer, proof('server')))
      throw new StrangerError('it does not hold the same secret');
  }
  return digest(secret, 'session', ...nonces);
}

export class Channel<Message> {
  private readonly socket: Socket;
  private readonly lines: Lines;
  private readonly key: Buffer;
  private readonly role: Role;
  private sent = 0;
  private received = 0;

  private constructor(socket: Socket, lines: Lines, key: Buffer, role: Role) {
    this.socket = socket;
    this.lines = lines;
    this.lines.limit = longest.launcher;
    this.key = key;
    this.role = role;
  }

  /** Takes the socket, which is destroyed if the other end is a stranger. */
  static async open<Message>(socket: Socket, secret: string, role: Role): Promise<Channel<Message>> {
    socket.setNoDelay(true).on('error', () => {}); // the end of its lines says it
    const lines = new Lines(socket);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      socket.destroy();
    }, patience);
    try {
      return new Channel(socket, lines, await prove(socket, lines, secret, role), role);
    } catch (error) {
      socket.destroy();
      throw late ? new StrangerError(`it said nothing for ${patience / 1000} s`) : error;
    } finally {
      clearTimeout(timer);
    }
  }

  private seal(of: Role, number: number, text: string): Buffer {
    return digest(this.key, of, String(number), text);
  }

  send(message: Message): void {
    if (this.socket.destroyed || this.socket.writableEnded) return;
    const text = JSON.stringify(message);
    this.socket.write(`${this.seal(this.role, this.sent++, text).toString('hex')} ${text}\n`);
  }

  /** The next message; undefined when the other end is gone, however it went. */
  async receive(): Promise<Message | undefined> {
    let line: string | undefined;
    try {
      line = await this.lines.next();
    } catch {
      this.socket.destroy();
    }
    if (line === undefined) return undefined;
    const text = line.slice(65);
    const from = this.role === 'server' ? 'client' : 'server';
    if (line[64] === ' ' && isProof(line.slice(0, 64), this.seal(from, this.received++, text))) return JSON.parse(text);
    this.socket.destroy();
    return undefined;
  }

  get isClosed(): boolean {
    return this.socket.destroyed;
  }

  /** Lets what was sent arrive: resolves when the other end has closed too, or after so many seconds. */
  close(seconds: number): Promise<void> {
    const { socket } = this;
    if (socket.destroyed) return Promise.resolve();
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    const timer = setTimeout(() => socket.destroy(), seconds * 1000);
    socket.end();
    return closed.finally(() => clearTimeout(timer));
  }

  destroy(): void {
    this.socket.destroy();
  }
}
