/** Newest modification time below `path`, in ms; 0 if it does not exist. */
export function newest(path: string): number;
