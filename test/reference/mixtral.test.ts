import { familyTests } from './family.ts';

familyTests('mixtral');
