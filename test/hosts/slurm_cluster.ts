// A Slurm cluster in a lab: h0 and h1 compute, h2 controls, with munge and Slurm as Debian packages them. Jobs in partition
// `batch` are preempted by those in `urgent`, with grace. Disposed of with the lab, whose hosts all its daemons run on.
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { HostProcess, Lab } from './lab.ts';

/** The first of `programs` that is not installed. */
export const missingProgram = (...programs: string[]): string | undefined =>
  programs.find((name) => spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0);

const missing = missingProgram('slurmctld', 'slurmd', 'sbatch', 'munged');

/** Why no cluster can be made on this machine; undefined where one can. */
export const whyNoSlurm: string | undefined =
  missing && `skipped: ${missing} is missing (apt-get install -y slurm-wlm munge)`;

const configuration = (folder: string, lab: Lab): string => {
  const [h0, h1, h2] = lab.hosts as [Lab['hosts'][0], Lab['hosts'][0], Lab['hosts'][0]];
  return `ClusterName=lab
SlurmctldHost=${h2.name}(${h2.address})
AuthType=auth/munge
AuthInfo=socket=${folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
StateSaveLocation=${folder}/state
SlurmdSpoolDir=${folder}/%n
SlurmctldPidFile=${folder}/slurmctld.pid
SlurmdPidFile=${folder}/%n.pid
SlurmctldLogFile=${folder}/slurmctld.log
SlurmdLogFile=${folder}/%n.log
SlurmctldDebug=debug2
SlurmdDebug=debug2
NodeName=${h0.name} NodeAddr=${h0.address} CPUs=2
NodeName=${h1.name} NodeAddr=${h1.address} CPUs=2
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
`;
};

export class SlurmCluster {
  readonly folder: string;
  private readonly lab: Lab;
  private readonly env: Record<string, string>;

  private constructor(lab: Lab, folder: string) {
    this.lab = lab;
    this.folder = folder;
    this.env = { SLURM_CONF: join(folder, 'slurm.conf') };
  }

  /** Writes into the new folder `folder`; resolves when both nodes are idle. The hosts must know each other's names. */
  static async start(lab: Lab, folder: string): Promise<SlurmCluster> {
    const cluster = new SlurmCluster(lab, folder);
    for (const name of ['state', 'h0', 'h1']) mkdirSync(join(folder, name), { recursive: true });
    writeFileSync(join(folder, 'munge.key'), randomBytes(1024), { mode: 0o600 });
    writeFileSync(join(folder, 'slurm.conf'), configuration(folder, lab));
    // 22.05 cannot do without one, although nothing here uses it.
    writeFileSync(join(folder, 'cgroup.conf'), 'CgroupPlugin=cgroup/v1\n');
    const munge = ['socket', 'key-file', 'pid-file', 'seed-file', 'log-file'].map(
      (name) => `--${name}=${folder}/munge.${name.replace('-file', '')}`,
    );
    const lasts = { env: cluster.env, timeout: 600_000 };
    const [h0, h1, h2] = lab.hosts as [Lab['hosts'][0], Lab['hosts'][0], Lab['hosts'][0]];
    h2.start(['munged', '--force', '--foreground', ...munge], lasts);
    await cluster.until('munged answers', async () => existsSync(join(folder, 'munge.socket')));
    h2.start(['slurmctld', '-D'], lasts);
    for (const host of [h0, h1]) host.start(['slurmd', '-D'], lasts);
    await cluster.until('both nodes are idle', async () => {
      const { stdout } = await h2.run(['sinfo', '--noheader', '--partition=batch', '--format=%D %t'], {
        env: cluster.env,
      });
      return stdout.trim() === '2 idle';
    });
    return cluster;
  }

  /** Runs a command of Slurm's on the controller's host. */
  run(argv: readonly string[], options: { env?: Record<string, string>; cwd?: string } = {}): Promise<HostProcess> {
    return this.lab.hosts[2]!.run(argv, { ...options, env: { ...this.env, ...options.env } });
  }

  /** Submits a batch script; resolves to the job's number. */
  async submit(argv: readonly string[], cwd: string): Promise<string> {
    const { code, stdout, stderr } = await this.run(['sbatch', '--parsable', ...argv], { cwd });
    if (code !== 0) throw new Error(`sbatch ${argv.join(' ')}: ${stderr}`);
    return stdout.trim();
  }

  /** A job's fields as `scontrol show job` has them. */
  async job(id: string): Promise<Record<string, string>> {
    const { stdout } = await this.run(['scontrol', '--oneliner', 'show', 'job', id]);
    return Object.fromEntries([...stdout.matchAll(/(\S+?)=(\S*)/g)].map(([, name, value]) => [name!, value!]));
  }

  async jobEnds(id: string): Promise<Record<string, string>> {
    const ended = /^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY)$/;
    await this.until(`job ${id} ends`, async () => ended.test((await this.job(id)).JobState ?? ''));
    return this.job(id);
  }

  /** Waits for up to a minute. */
  async until(what: string, holds: () => Promise<boolean>): Promise<void> {
    const end = Date.now() + 60_000;
    while (!(await holds())) {
      if (Date.now() > end) throw new Error(`within a minute it did not come true that ${what}\n${this.log}`);
      await sleep(100);
    }
  }

  /** What the daemons said. */
  get log(): string {
    const files = ['slurmctld.log', 'h0.log', 'h1.log', 'munge.log'].map((name) => join(this.folder, name));
    return files
      .filter((file) => existsSync(file))
      .map((file) => readFileSync(file, 'utf8'))
      .join('');
  }
}
