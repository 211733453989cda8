// One rank of `rankzero finetune`. Its argument is the options as JSON, checked by the parent.
import type { FinetuneOptions } from '../train/options.ts';
import type { Reporter } from '../train/reporter.ts';
import { withoutStack } from './errors.ts';

const options = JSON.parse(process.argv[2]!) as FinetuneOptions;
const { runFinetune } = await import('../train/finetune.ts');
const { rankEnvironment } = await import('../distributed/environment.ts');
const reporter: Reporter =
  rankEnvironment().rank === 0 ? (await import('../train/report/index.ts')).createReporter(options) : {};
try {
  await runFinetune(options, reporter);
} catch (error) {
  throw withoutStack(error);
}
