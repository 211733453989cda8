// Between files and tensors of a device: through host memory, a part at a time. The memory of one part is that of the next,
// since both are used on one stream alone: what is under way is one part and the pinned ring.

import { dtypeSize } from './dtype.ts';
import { fileStream, onStream, replaceFileStream, StreamEvent } from './streams.ts';
import { Tensor } from './tensor.ts';

const partBytes = 16 << 20;

/** Calls `use` with each part of `tensor` and a host tensor for its values, on the current stream. */
function* throughHost(
  tensor: Tensor,
  use: (part: Tensor, host: Tensor, at: number) => void,
  stream?: number,
): Generator<number> {
  const step = partBytes / dtypeSize(tensor.dtype);
  for (let at = 0; at < tensor.numel; at += step) {
    const numel = Math.min(step, tensor.numel - at);
    const pass = (): void => {
      using part = tensor.slice(at, [numel]);
      using host = Tensor.empty([numel], tensor.dtype, 'staging');
      use(part, host, at);
    };
    if (stream === undefined) pass();
    else onStream(stream, pass);
    yield numel * dtypeSize(tensor.dtype);
  }
}

/**
 * What passes between files and tensors in one save or load, on the file stream. The program is at most two parts ahead of the
 * file, so that it does not block and the device's queue does not fill.
 */
export class HostParts {
  private readonly ahead: StreamEvent[] = [];
  private bytes = 0;

  /** `write` gets the values of `tensor` in host memory, from an element on. Then `tensor` may be disposed, and all is enqueued. */
  async write(tensor: Tensor, write: (host: Tensor, at: number) => void): Promise<void> {
    if (tensor.device === 'cpu') {
      write(tensor, 0);
      return;
    }
    await this.pass(tensor, (part, host, at) => {
      host.copyFrom(part);
      write(host, at);
    });
  }

  /** `read` fills host memory with the values of `tensor` from an element on; that of the host at once, on the current stream. */
  async read(tensor: Tensor, read: (host: Tensor, at: number) => void): Promise<void> {
    if (tensor.device === 'cpu') {
      read(tensor, 0);
      return;
    }
    await this.pass(tensor, (part, host, at) => {
      read(host, at);
      part.copyFrom(host);
    });
  }

  private async pass(tensor: Tensor, use: (part: Tensor, host: Tensor, at: number) => void): Promise<void> {
    const stream = fileStream();
    for (const bytes of throughHost(tensor, use, stream)) {
      this.bytes += bytes;
      if (this.bytes < partBytes) continue;
      this.bytes = 0;
      this.ahead.push(new StreamEvent(stream));
      if (this.ahead.length > 2) await this.waitForOne(stream);
    }
  }

  private async waitForOne(stream: number): Promise<void> {
    const event = this.ahead.shift()!;
    try {
      await event.wait();
    } catch (error) {
      replaceFileStream(stream);
      throw error;
    } finally {
      event.dispose();
    }
  }

  [Symbol.dispose](): void {
    for (const event of this.ahead.splice(0)) event.dispose();
  }
}

/** `read` fills host memory with the values of `tensor` from an element on, on the current stream of the host. Enqueues. */
export function fillThroughHost(tensor: Tensor, read: (host: Tensor, at: number) => void): void {
  if (tensor.device === 'cpu') {
    read(tensor, 0);
    return;
  }
  const parts = throughHost(tensor, (part, host, at) => {
    read(host, at);
    part.copyFrom(host);
  });
  while (!parts.next().done);
}
