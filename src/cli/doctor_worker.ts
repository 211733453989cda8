// One rank of the doctor's all-reduce test: every rank adds its own numbers, and checks the sum.
import { dist } from '../distributed/index.ts';
import { native } from '../native.ts';
import { dtypeNumber } from '../tensor/dtype.ts';

await dist.initProcessGroup({ quiet: true });
const count = 100_000;
const values = Float32Array.from({ length: count }, (_, i) => (dist.getRank() + 1) * (i % 97));
const tensor = native.tensorEmpty(count, dtypeNumber('float32'), 0);
native.tensorWrite(tensor, values);
dist.group.allReduce(tensor);
native.tensorRead(tensor, values);
const wanted = (dist.getWorldSize() * (dist.getWorldSize() + 1)) / 2;
const wrong = values.findIndex((value, i) => value !== wanted * (i % 97));
if (wrong >= 0) throw new Error(`element ${wrong} is ${values[wrong]}, not ${wanted * (wrong % 97)}`);
native.tensorRelease(tensor);
dist.destroyProcessGroup();
