/** Something the build needs. */
export interface Prerequisite {
  what: string;
  /** Package names on Debian and on Fedora. */
  apt: string;
  dnf: string;
  present: () => boolean;
}

export function missingPrerequisites(): Prerequisite[];
export function missingOptional(): Prerequisite[];
export function packageManager(): 'apt' | 'dnf' | undefined;
export function installCommand(missing: readonly Prerequisite[], manager?: 'apt' | 'dnf'): string;
export function nodeIsSupported(version?: string): boolean;
export function prerequisiteMessage(): string | undefined;
