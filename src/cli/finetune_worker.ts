// One rank of `rankzero finetune`. Its argument is the options as JSON, checked by the parent.
import type { FinetuneOptions } from '../train/options.ts';
import type { Reporter } from '../train/reporter.ts';

const options = JSON.parse(process.argv[2]!) as FinetuneOptions;
const { runFinetune } = await import('../train/finetune.ts');
const reporter: Reporter =
  process.env.RANK === '0' ? (await import('../train/report/index.ts')).createReporter(options) : {};
await runFinetune(options, reporter);
