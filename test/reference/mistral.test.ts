import { familyTests } from './family.ts';

familyTests('mistral-window');
