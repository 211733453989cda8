import { familyTests } from './family.ts';

for (const name of ['qwen2', 'qwen3', 'qwen3-window']) familyTests(name);
