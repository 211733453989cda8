// The optimizer that the options of a run ask for.
import type { Parameter } from '../nn/parameter.ts';
import { Adafactor } from '../optim/adafactor.ts';
import { AdamW } from '../optim/adamw.ts';
import { AdamW8bit } from '../optim/adamw8bit.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { SGD } from '../optim/sgd.ts';
import type { FinetuneOptions } from './options.ts';

/** Over `parameters`: fsdp.namedParameters(). */
export function makeOptimizer(parameters: Iterable<readonly [string, Parameter]>, options: FinetuneOptions): Optimizer {
  const { lr, betas, eps, weightDecay, momentum = 0.9, dampening, nesterov, beta2Decay, clipThreshold } = options;
  switch (options.optimizer) {
    case 'adamw':
      return new AdamW(parameters, { lr, betas, eps, weightDecay });
    case 'adamw8bit':
      return new AdamW8bit(parameters, { lr, betas, eps, weightDecay });
    case 'adafactor':
      return new Adafactor(parameters, { lr, beta2Decay, d: clipThreshold, weightDecay });
    case 'sgd':
      return new SGD(parameters, { lr, momentum, dampening, nesterov, weightDecay });
  }
}
