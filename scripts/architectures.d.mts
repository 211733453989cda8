export function architecturesFor(release: string): string;
export function nvccRelease(): string | undefined;
