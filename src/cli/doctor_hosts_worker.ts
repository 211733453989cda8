// The one rank of a host in `rankzero doctor --hosts`: looks at the host, measures its links, and on node 0 says what all found.
// Arguments: JSON of { json, path }.
import { hostname } from 'node:os';
import { packageVersion } from '../core/version.ts';
import { allGatherJson } from '../distributed/exchange.ts';
import { dist } from '../distributed/index.ts';
import { native } from '../native.ts';
import { checkFolder } from '../tools/hosts/folder.ts';
import { measureLinks } from '../tools/hosts/links.ts';
import { describeHosts, type HostFinding, type HostsReport, problemsOf } from '../tools/hosts/report.ts';
import { withoutStack } from './errors.ts';

const { json, path } = JSON.parse(process.argv[2]!) as { json: boolean; path?: string | undefined };
await dist.initProcessGroup({ quiet: true });
const { group } = dist;
const own: HostFinding = {
  host: hostname(),
  node: process.versions.node,
  isa: native.info().isa,
  engine: native.engineInfo().version,
};
const report: HostsReport = {
  rankzero: packageVersion(),
  hosts: allGatherJson(group, own),
  hostOf: group.hostOf,
  links: allGatherJson(group, measureLinks(group)).flat(),
  path,
  folder: path === undefined ? undefined : allGatherJson(group, await checkFolder(group, path)),
};
const problems = problemsOf(report);
if (group.rank === 0) console.log(json ? JSON.stringify({ ...report, problems }, null, 2) : describeHosts(report));
dist.destroyProcessGroup();
if (problems.length > 0 && group.rank === 0) throw withoutStack(new Error(problems.join('; ')));
