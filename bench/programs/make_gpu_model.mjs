// Writes the checkpoint of the GPU benches: argv[2] = full (1B-class, bfloat16) | small, argv[3] = folder.

import { AutoModelForCausalLM, manualSeed } from '../../dist/index.js';
import { measuredConfig } from '../../dist/tools/gpu/measure/model.js';

manualSeed(0);
await AutoModelForCausalLM.fromConfig(measuredConfig(process.argv[2])).savePretrained(process.argv[3]);
