// The command line of a bench: its own options and those that all have. An option is { default, quick?, help }; the type of
// the default is the type of the option, and an option that is true by --name is false by default.
import { basename } from 'node:path';
import { parseArgs } from 'node:util';

const common = {
  python: { default: '', help: "the peer's interpreter, PATH/bin/python; without it our side runs alone" },
  repetitions: { default: 5, quick: 1, help: 'runs of each side, which alternate' },
  calm: { default: 0, help: 'cores: runs wait, and are repeated, when other processes use more (0: never)' },
  quick: { default: false, help: 'tiny settings, to see that everything runs' },
  help: { default: false, help: 'this text' },
};

/**
 * The settings of the command line. `purpose` and the options make the text of --help. Ends the process on --help, and with
 * exit code 2 on a wrong option.
 */
export function readOptions(purpose, own) {
  const spec = { ...own, ...common };
  try {
    const options = Object.fromEntries(
      Object.entries(spec).map(([name, option]) => [
        name,
        { type: typeof option.default === 'boolean' ? 'boolean' : 'string' },
      ]),
    );
    const { values } = parseArgs({ options });
    if (values.help) {
      process.stdout.write(usage(purpose, spec));
      process.exit(0);
    }
    const settings = {};
    for (const [name, option] of Object.entries(spec)) {
      const fallback = values.quick && option.quick !== undefined ? option.quick : option.default;
      settings[name] = values[name] === undefined ? fallback : convert(name, values[name], option.default);
    }
    if (!(settings.repetitions >= 1))
      throw new Error(`--repetitions must be at least 1 but is ${settings.repetitions}`);
    delete settings.help;
    return settings;
  } catch (error) {
    process.stderr.write(`${error.message}\n\n${usage(purpose, spec)}`);
    process.exit(2);
  }
}

function convert(name, text, like) {
  if (Array.isArray(like)) return text.split(',').map((item) => convert(name, item, like[0]));
  if (typeof like !== 'number') return text;
  const value = Number(text);
  if (text === '' || Number.isNaN(value)) throw new Error(`--${name} needs a number but got "${text}"`);
  return value;
}

function usage(purpose, spec) {
  const lines = Object.entries(spec).map(([name, { default: value, help }]) => {
    const shown = typeof value === 'boolean' || String(value) === '' ? '' : ` [${value}]`;
    return `  --${name.padEnd(20)} ${help}${shown}`;
  });
  return `usage: node bench/${basename(process.argv[1])} [options] > result.json\n\n${purpose}\n\n${lines.join('\n')}\n`;
}
