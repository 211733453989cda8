import { familyTests } from './family.ts';

for (const name of ['gpt-neox', 'gpt-neox-sequential']) familyTests(name);
