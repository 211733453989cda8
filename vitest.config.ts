import { defineConfig, type ViteUserConfig } from 'vitest/config';

const project = (name: string, extra = {}) => ({
  extends: true as const,
  test: { name, include: [`test/${name}/**/*.test.ts`], ...extra },
});

// Two cores: the folders that spawn ranks or measure memory run one file at a time.
const alone = { fileParallelism: false, testTimeout: 120_000, hookTimeout: 120_000 };

const config: ViteUserConfig = defineConfig({
  test: {
    pool: 'forks',
    testTimeout: 30_000,
    // Test files share the cores: threads that wait must not spin.
    env: { OMP_WAIT_POLICY: 'passive' },
    projects: [
      project('unit'),
      project('native'),
      project('reference', { testTimeout: 60_000 }),
      project('multi', alone),
      project('emulated', { ...alone, testTimeout: 300_000 }),
      project('hosts', alone),
      project('package', alone),
    ],
  },
});

export default config;
