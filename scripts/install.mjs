// npm's install step: nothing to do where a prebuilt addon loads, else check what the build needs and build it.
import { buildAddon, isStale, loadError } from './addon.mjs';
import { prerequisiteMessage } from './prerequisites.mjs';

const reason = isStale() ? 'its sources are newer than the build' : loadError();
if (reason !== undefined) {
  const message = prerequisiteMessage();
  if (message !== undefined) {
    console.error(`\n${message}\n`);
    process.exit(1);
  }
  console.log(`rankzero: building the native addon (${reason})`);
  try {
    await buildAddon();
    const error = loadError();
    if (error !== undefined) throw new Error(`the addon was built, but does not load: ${error}`);
  } catch (error) {
    console.error(`rankzero: ${error.message}`);
    process.exit(1);
  }
}
