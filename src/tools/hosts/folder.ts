// Whether a path is one folder on all hosts: each rank leaves a file there, and looks for those of the others.
import { randomUUID } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { allGatherJson } from '../../distributed/exchange.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';

/** What one rank found; '' where all is well. */
export interface FolderFinding {
  /** Why it could write nothing there. */
  problem: string;
  /** Ranks whose files it does not see. */
  unseen: number[];
}

/** Network file systems show what another host has made only when their attributes have expired. */
const patience = 5000;

async function appears(file: string, text: string): Promise<boolean> {
  for (const until = Date.now() + patience; ; await setTimeout(100)) {
    try {
      if (readFileSync(file, 'utf8') === text) return true;
    } catch {
      // It is not there yet.
    }
    if (Date.now() > until) return false;
  }
}

/** Collective. */
export async function checkFolder(group: ProcessGroup, path: string): Promise<FolderFinding> {
  const text = randomUUID();
  const own = join(path, `.rankzero-doctor-${text}`);
  let problem = '';
  try {
    writeFileSync(own, text, { flag: 'wx' });
  } catch (error) {
    problem = (error as Error).message;
  }
  try {
    const files = allGatherJson(group, problem === '' ? text : '');
    const unseen: number[] = [];
    for (const [rank, name] of files.entries())
      if (name !== '' && !(await appears(join(path, `.rankzero-doctor-${name}`), name))) unseen.push(rank);
    group.barrier(); // nobody removes what others look for
    return { problem, unseen };
  } finally {
    if (problem === '') rmSync(own, { force: true });
  }
}
