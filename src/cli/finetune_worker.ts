// One rank of `rankzero finetune`. Its argument is the options as JSON, checked by the parent.
import type { FinetuneOptions } from '../train/options.ts';
import type { Reporter } from '../train/reporter.ts';
import { withoutStack } from './errors.ts';

const options = JSON.parse(process.argv[2]!) as FinetuneOptions;
const { runFinetune } = await import('../train/finetune.ts');
const reporter: Reporter =
  process.env.RANK === '0' ? (await import('../train/report/index.ts')).createReporter(options) : {};
try {
  await runFinetune(options, reporter);
} catch (error) {
  throw withoutStack(error);
}
// An interrupted run has saved and ended well; to the launcher any other code is a failed rank. The parent exits with 130.
process.exitCode = 0;
