// How fast two ranks on different hosts talk: round trips, the difference of their clocks, and bytes a second in each direction.
// Every host is in one pair at a time, so that no pair slows another; all pairs of a round measure together.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';

/** Of two ranks, as `from` measured. */
export interface LinkFinding {
  from: number;
  to: number;
  /** The shortest of many. */
  roundTripSeconds: number;
  /** How far the clock of `to` is ahead. */
  clockSeconds: number;
  /** Bytes a second from `from` to `to`, and back. */
  there: number;
  back: number;
}

const numRoundTrips = 50;
const probeBytes = 1 << 20;
/** A direction takes about a second, and sends no more than this. */
const mostBytes = 128 << 20;

/** All pairs of `count` ranks, in rounds in which nobody has two. */
export function rounds(count: number): [number, number][][] {
  const ranks = Array.from({ length: count + (count % 2) }, (_, i) => i);
  return ranks.slice(1).map(() => {
    const half = ranks.length / 2;
    const pairs = ranks.slice(0, half).map((rank, i) => [rank, ranks[ranks.length - 1 - i]!] as [number, number]);
    ranks.splice(1, 0, ranks.pop()!);
    return pairs.filter((pair) => Math.max(...pair) < count).map(([a, b]) => (a < b ? [a, b] : [b, a]));
  });
}

const now = (): number => performance.timeOrigin + performance.now();

/** One end of a pair. Calls wait. */
class End implements Disposable {
  private readonly group: ProcessGroup;
  private readonly peer: number;
  private readonly number = Tensor.empty([1], 'int64');
  private readonly bulk = Tensor.empty([mostBytes], 'uint8');

  constructor(group: ProcessGroup, peer: number) {
    this.group = group;
    this.peer = peer;
  }

  tell(value: number): void {
    native.tensorWrite(this.number.handle, BigInt64Array.of(BigInt(Math.round(value))));
    this.group.send(this.number.handle, this.peer);
  }

  hear(): number {
    this.group.recv(this.number.handle, this.peer);
    return Number((this.number.dataSync() as BigInt64Array)[0]);
  }

  /** Seconds until the other end has `bytes`. */
  give(bytes: number): number {
    const start = now();
    using part = this.bulk.slice(0, [bytes]);
    this.group.send(part.handle, this.peer);
    this.hear();
    return (now() - start) / 1000;
  }

  take(bytes: number): void {
    using part = this.bulk.slice(0, [bytes]);
    this.group.recv(part.handle, this.peer);
    this.tell(0);
  }

  /** Bytes a second to the other end, which calls beMeasured. */
  measure(): number {
    const probe = this.give(probeBytes);
    const bytes = Math.min(mostBytes, Math.max(probeBytes, Math.round(probeBytes / probe)));
    this.tell(bytes);
    return bytes / this.give(bytes);
  }

  beMeasured(): void {
    this.take(probeBytes);
    this.take(this.hear());
  }

  [Symbol.dispose](): void {
    this.number.dispose();
    this.bulk.dispose();
  }
}

function lead(end: End): Omit<LinkFinding, 'from' | 'to'> {
  let roundTripSeconds = Number.POSITIVE_INFINITY;
  let clockSeconds = 0;
  for (let i = 0; i < numRoundTrips; i++) {
    const start = now();
    end.tell(0);
    const theirs = end.hear() / 1000;
    const took = (now() - start) / 1000;
    if (took >= roundTripSeconds) continue;
    roundTripSeconds = took;
    clockSeconds = (theirs - start) / 1000 - took / 2;
  }
  const there = end.measure();
  end.beMeasured();
  return { roundTripSeconds, clockSeconds, there, back: end.hear() };
}

function follow(end: End): void {
  for (let i = 0; i < numRoundTrips; i++) {
    end.hear();
    end.tell(now() * 1000);
  }
  end.beMeasured();
  end.tell(end.measure());
}

/** Those pairs of which this rank is the first. Collective. */
export function measureLinks(group: ProcessGroup): LinkFinding[] {
  const found: LinkFinding[] = [];
  for (const pairs of rounds(group.size)) {
    const pair = pairs.find((ranks) => ranks.includes(group.rank));
    if (pair) {
      const [from, to] = pair;
      using end = new End(group, group.rank === from ? to : from);
      if (group.rank === from) found.push({ from, to, ...lead(end) });
      else follow(end);
    }
    group.barrier();
  }
  return found;
}
