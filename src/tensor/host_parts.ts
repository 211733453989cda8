// Between files and tensors of a device: through host memory, a part at a time. Everything is enqueued, and the memory of one
// part is that of the next, since both are used on one stream alone: what is under way is one part and the pinned ring.

import { dtypeSize } from './dtype.ts';
import { fileStream, onStream } from './streams.ts';
import { Tensor } from './tensor.ts';

const partBytes = 16 << 20;

/** Calls `use` with each part of `tensor` and a host tensor for its values. */
function throughHost(tensor: Tensor, use: (part: Tensor, host: Tensor, at: number) => void): void {
  const step = partBytes / dtypeSize(tensor.dtype);
  for (let at = 0; at < tensor.numel; at += step) {
    const numel = Math.min(step, tensor.numel - at);
    using part = tensor.slice(at, [numel]);
    using host = Tensor.empty([numel], tensor.dtype, 'staging');
    use(part, host, at);
  }
}

/** `write` gets the values of `tensor` in host memory, from an element on. Enqueues; `tensor` may be disposed at once. */
export function writeFromHost(tensor: Tensor, write: (host: Tensor, at: number) => void): void {
  if (tensor.device === 'cpu') {
    write(tensor, 0);
    return;
  }
  onStream(fileStream(), () =>
    throughHost(tensor, (part, host, at) => {
      host.copyFrom(part);
      write(host, at);
    }),
  );
}

/** `read` fills host memory with the values of `tensor` from an element on; on the current stream or the file stream. Enqueues. */
export function readToHost(tensor: Tensor, read: (host: Tensor, at: number) => void): void {
  if (tensor.device === 'cpu') read(tensor, 0);
  else onStream(fileStream(), () => fillThroughHost(tensor, read));
}

/** As readToHost, on the current stream of the host. */
export function fillThroughHost(tensor: Tensor, read: (host: Tensor, at: number) => void): void {
  if (tensor.device === 'cpu') {
    read(tensor, 0);
    return;
  }
  throughHost(tensor, (part, host, at) => {
    read(host, at);
    part.copyFrom(host);
  });
}
