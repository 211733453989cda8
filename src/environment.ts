// The environment of this process. Beside the commands this is the only module that reads it: whoever takes a whole
// environment gets it as an argument, with `variables()` as the default.

export type Variables = Readonly<Record<string, string | undefined>>;

export function variables(): Variables {
  return process.env;
}

/** For a library that reads `name` when it is loaded, and for the processes that this one starts. */
export function setDefault(name: string, value: string): void {
  process.env[name] ??= value;
}

const isOn = (text: string | undefined): boolean => text !== undefined && text !== '' && text !== '0';

/** Settings that no argument carries. Each is read when it is asked for. */
export interface Settings {
  /** RANKZERO_ADDON: another build of the addon, for tests: that of the emulator, or one with other options. */
  readonly addon: string | undefined;
  /** RANKZERO_DEBUG: errors with their stacks, and checks that take time. */
  readonly debug: boolean;
  /** RANKZERO_QUIET: rank 0 does not say how the ranks are connected. */
  readonly quiet: boolean;
  /** RANKZERO_TIMEOUT, in seconds, as it is written. */
  readonly timeout: string | undefined;
  /** RANKZERO_HEARTBEAT_TIMEOUT, in seconds, as it is written. */
  readonly heartbeatTimeout: string | undefined;
  /** RANKZERO_GRACE, in seconds, as it is written. */
  readonly grace: string | undefined;
  /** RANKZERO_ADDRESS: where ranks of other hosts reach this one. */
  readonly address: string | undefined;
  /** RANKZERO_FSDP_GATHER=copy: ranks do not map each other's memory, as on devices. */
  readonly gathersByCopy: boolean;
  /** RANKZERO_FUSIONS: what a device runs as one op (tensor/fusions.ts), as it is written. */
  readonly fusions: string | undefined;
  /** NO_COLOR is not set. */
  readonly color: boolean;
  /** RANKZERO_LAUNCHER_PID and RANKZERO_STATUS_FD: the launcher, and the pipe on which it listens for failures. */
  readonly launcherPid: string | undefined;
  readonly statusFd: string | undefined;
}

export const settings: Settings = {
  get addon() {
    return process.env.RANKZERO_ADDON || undefined;
  },
  get debug() {
    return isOn(process.env.RANKZERO_DEBUG);
  },
  get quiet() {
    return isOn(process.env.RANKZERO_QUIET);
  },
  get timeout() {
    return process.env.RANKZERO_TIMEOUT;
  },
  get heartbeatTimeout() {
    return process.env.RANKZERO_HEARTBEAT_TIMEOUT;
  },
  get grace() {
    return process.env.RANKZERO_GRACE;
  },
  get address() {
    return process.env.RANKZERO_ADDRESS || undefined;
  },
  get gathersByCopy() {
    return process.env.RANKZERO_FSDP_GATHER === 'copy';
  },
  get fusions() {
    return process.env.RANKZERO_FUSIONS || undefined;
  },
  get color() {
    return !process.env.NO_COLOR;
  },
  get launcherPid() {
    return process.env.RANKZERO_LAUNCHER_PID;
  },
  get statusFd() {
    return process.env.RANKZERO_STATUS_FD;
  },
};
