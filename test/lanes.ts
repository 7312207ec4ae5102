// The runtimes every test runs in. A lane that this machine lacks throws in open(), with the reason as message.
import { spawn, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { softwareVulkan } from '../tools/chromium.ts';
import { openChromium } from './browser/chromium.ts';
import { type Outcome, outcome } from './outcome.ts';
import { sandbox } from './sandbox.ts';

export interface Lane {
  readonly name: string;
  /** The test files that it runs, without `.test.ts`, if not all. */
  readonly files?: readonly string[];
  /** Lists of test files that run in one process or page: they compile the same shaders, which takes longer than all that is done by them. */
  readonly together?: readonly (readonly string[])[];
  /** What this lane does not repeat. */
  readonly leaves?: readonly Left[];
  open(): Promise<Runtime>;
}

/** What a lane leaves to another where that one runs, too: CONTRIBUTING.md has the rule. Run alone a lane leaves nothing. */
export interface Left {
  /** The lane that runs it. */
  readonly to: string;
  /** Test files. */
  readonly files?: readonly string[];
  /** Backends, by their names in verbs.ts, on which no test is run. */
  readonly backends?: readonly string[];
  /** All that runs on a GPU but for these test files, and those that run in Node alone. Left only to a lane that has an adapter. */
  readonly gpuBut?: readonly string[];
}

export interface Runtime {
  readonly version: string;
  /** Whether it was asked for a WebGPU adapter and has one. */
  readonly hasAdapter?: boolean;
  /** Runs one bundled test file of the sandbox; never throws and never takes longer than `timeoutMs` and a little. */
  run(file: string, timeoutMs: number, variables: Readonly<Record<string, string>>): Promise<Outcome>;
  close(): Promise<void>;
}

const bin = (name: string) => fileURLToPath(new URL(`../node_modules/.bin/${name}`, import.meta.url));

const sourceMaps = ['--enable-source-maps']; // stack traces then name lines of test/*.ts, as Deno's do unasked

const vulkan = softwareVulkan();

/**
 * f64 in JavaScript and WebAssembly that is not relaxed have one right result, to the last bit. Node's V8 and Bun's JavaScriptCore are
 * held to it; Deno and Chromium have V8 again, and run what differs: relaxed SIMD, and a GPU.
 */
const fixedByEngine = { backends: ['reference', 'wasm scalar', 'wasm simd128'] } as const;

/** Their shape is the self-test's, or they open backends, which are tested. The last ends with a device that is lost. */
const onOneDevice = ['choose', 'dispose', 'gpubuffers', 'webgpu'];

export const lanes: readonly Lane[] = [
  {
    ...command('node', process.execPath, sourceMaps, vulkan),
    together: [onOneDevice],
    // Dawn in Node is Dawn in Chromium: the same compiler of shaders before the same adapter, which takes a second or more for each.
    // Devices, how they are found and lost, buffers and self-tests are tried in both.
    leaves: [{ to: 'chromium', gpuBut: onOneDevice }]
  },
  // Node 20 validates relaxed SIMD only behind this flag; later versions need no flag and no lane. What differs in that binary is
  // verbs and attention; all the rest runs on it in Deno, in Bun and in Chromium.
  ...(Number.parseInt(process.versions.node, 10) < 22
    ? [
        {
          ...command('node-relaxed', process.execPath, [...sourceMaps, '--experimental-wasm-relaxed-simd'], {
            NSN_WITHOUT_WEBGPU: 'the lane node runs it'
          }),
          files: ['attend', 'choose', 'golden', 'kernels'],
          leaves: [{ to: 'node', ...fixedByEngine }]
        }
      ]
    : []),
  // manual, cached-only: imports are found in node_modules as it lies there and nothing is fetched. To read fixtures, and the
  // environment for uvu's NO_COLOR, are all the permissions given: a library that wanted more would fail here.
  {
    ...command(
      'deno',
      bin('deno'),
      ['run', '--node-modules-dir=manual', '--cached-only', '--no-lock', '--no-prompt', '--allow-read', '--allow-env'],
      vulkan
    ),
    together: [onOneDevice.filter(name => name !== 'choose')],
    leaves: [
      { to: 'node', ...fixedByEngine, files: ['bounds', 'coding', 'kernels', 'layout', 'magnitudes', 'quality'] },
      // Another compiler of shaders could get arithmetic wrong, which these files have.
      { to: 'chromium', gpuBut: ['attend', 'dispose', 'formats', 'gpubuffers', 'learning', 'webgpu'] }
    ]
  },
  {
    ...command('bun', bin('bun'), ['run', '--no-install'], { NSN_WITHOUT_WEBGPU: 'Bun has no WebGPU' }),
    // The least and the most that options may be is arithmetic of whole numbers.
    leaves: [{ to: 'node', files: ['bounds'] }]
  },
  {
    name: 'chromium',
    open: openChromium,
    together: [
      [
        ...['attend', 'batch', 'bytes', 'cache', 'damaged', 'evict', 'grow', 'histories', 'lessons', 'masks', 'odd', 'prefixes'],
        ...['profiles', 'refusals', 'reorder', 'windows']
      ],
      onOneDevice
    ],
    leaves: [{ to: 'node', ...fixedByEngine, files: ['bounds', 'coding', 'layout', 'magnitudes', 'quality'] }]
  }
];

function command(name: string, executable: string, flags: string[], variables: NodeJS.ProcessEnv = {}): Lane {
  return {
    name,
    async open() {
      const probe = spawnSync(executable, ['--version'], { encoding: 'utf8' });
      if (probe.error) throw probe.error;
      if (probe.status !== 0) throw new Error(probe.stderr.trim().split('\n')[0]);
      return {
        version: probe.stdout.split('\n')[0]!,
        run: (file, timeoutMs, more) => runProcess(executable, [...flags, file], { ...process.env, ...variables, ...more }, timeoutMs),
        async close() {}
      };
    }
  };
}

// What is still running when the runner itself ends, by Ctrl-C say, ends with it.
const groups = new Set<number>();
process.on('exit', () => groups.forEach(endGroup));
process.on('SIGINT', () => process.exit(130));
process.on('SIGTERM', () => process.exit(143));

/** A negative process id means the group: a test's own child processes too. */
function endGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function runProcess(executable: string, args: string[], env: NodeJS.ProcessEnv, timeoutMs: number): Promise<Outcome> {
  return new Promise(resolve => {
    const child = spawn(executable, args, { cwd: sandbox, env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    const pid = child.pid;
    let printed = '';
    let problem: string | undefined;
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', text => {
        printed += text;
      });
    }
    const timer = setTimeout(() => {
      problem = `still running after ${timeoutMs / 1000} s`;
      if (pid !== undefined) endGroup(pid);
    }, timeoutMs);
    if (pid !== undefined) groups.add(pid);
    child.on('error', error => {
      problem = error.message;
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      if (pid !== undefined) groups.delete(pid);
      if (code !== 0) problem ??= `ended with ${signal ?? `exit code ${code}`}`;
      resolve(outcome(printed, problem));
    });
  });
}
