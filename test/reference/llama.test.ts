import { llamaCases } from './cases.ts';
import { familyTests } from './family.ts';

llamaCases.forEach(familyTests);
