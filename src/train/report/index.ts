// The reporters of `rankzero finetune`, put together.
import { join } from 'node:path';
import type { FinetuneOptions } from '../options.ts';
import { combineReporters, type Reporter } from '../reporter.ts';
import { describeEnvironment } from './environment.ts';
import { ReportWriter } from './html.ts';
import { MetricsWriter } from './metrics.ts';
import { Progress } from './progress.ts';
import { TensorBoardWriter } from './tensorboard.ts';

/** Terminal, `metrics.jsonl`, and what the options ask for: TensorBoard files, `report.html`. For rank 0. */
export function createReporter(options: Pick<FinetuneOptions, 'out' | 'tensorboard' | 'report'>): Reporter {
  const metrics = join(options.out, 'metrics.jsonl');
  // Files first: what the terminal says is written has been written.
  const reporters: Reporter[] = [new MetricsWriter(metrics, describeEnvironment())];
  if (options.tensorboard) reporters.push(new TensorBoardWriter(join(options.out, 'tensorboard')));
  if (options.report) reporters.push(new ReportWriter(metrics, join(options.out, 'report.html')));
  reporters.push(new Progress({ report: options.report }));
  return combineReporters(reporters);
}
