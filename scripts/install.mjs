// npm's install step: nothing to do where a prebuilt addon loads, else check what the build needs and build it. Where Gloo came
// later, its module is built then.
import { buildAddon, loadError, reasonToBuild } from './addon.mjs';
import { installCommand, missingOptional, prerequisiteMessage } from './prerequisites.mjs';

const reason = reasonToBuild();
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
    const optional = missingOptional();
    if (optional.length > 0)
      console.log(`rankzero: jobs of several hosts need Gloo: ${installCommand(optional)}, then npm rebuild rankzero`);
  } catch (error) {
    console.error(`rankzero: ${error.message}`);
    process.exit(1);
  }
}
