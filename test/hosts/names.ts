// Names of a lab's hosts, as its programs resolve them: `ip netns exec` puts files of /etc/netns/NAMESPACE over those of /etc.
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Lab } from './lab.ts';

/** Lets all hosts resolve `names`, by default their own; for programs that are started afterwards. Disposing forgets them. */
export function nameHosts(lab: Lab, names: readonly string[] = lab.hosts.map(({ name }) => name)): Disposable {
  const folders = lab.hosts.map(({ namespace }) => join('/etc/netns', namespace));
  const lines = lab.hosts.flatMap(({ address, address6 }, i) => [`${address} ${names[i]}`, `${address6} ${names[i]}`]);
  for (const folder of folders) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'hosts'), `127.0.0.1 localhost\n::1 localhost\n${lines.join('\n')}\n`);
  }
  return {
    [Symbol.dispose]: () => {
      for (const folder of folders) rmSync(folder, { recursive: true, force: true });
    },
  };
}
