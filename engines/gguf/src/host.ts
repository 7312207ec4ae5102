// The host engine: ONNX Runtime, in the flavor that the program was given (onnxruntime-node or onnxruntime-web).
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-common';

/** What onnxruntime-node and onnxruntime-web have in common. */
export interface OnnxRuntime {
  readonly InferenceSession: { create(model: Uint8Array, options?: InferenceSession.SessionOptions): Promise<InferenceSession> };
  readonly Tensor: TensorConstructor;
}

export interface HostOptions {
  /** Threads of each call. In a browser it is `env.wasm.numThreads` that counts. */
  readonly threads?: number;
}

export interface Matrix {
  readonly data: Float32Array;
  readonly shape: readonly number[];
}

/** A graph ready to run. */
export class Session {
  readonly #runtime: OnnxRuntime;
  readonly #session: InferenceSession;

  private constructor(runtime: OnnxRuntime, session: InferenceSession) {
    this.#runtime = runtime;
    this.#session = session;
  }

  static async open(runtime: OnnxRuntime, model: Uint8Array, { threads = 1 }: HostOptions = {}): Promise<Session> {
    return new Session(
      runtime,
      await runtime.InferenceSession.create(model, {
        executionProviders: ['cpu'],
        intraOpNumThreads: threads,
        interOpNumThreads: 1,
        logSeverityLevel: 3,
        // Each of the sessions has threads of its own: waiting busily they would take the processors from one another.
        extra: { session: { intra_op: { allow_spinning: '0' } } }
      })
    );
  }

  /** Inputs by name; outputs by the graph's names without their " out". */
  async run(inputs: Readonly<Record<string, Matrix>>): Promise<Record<string, Float32Array>> {
    const feeds: Record<string, Tensor> = {};
    for (const [name, { data, shape }] of Object.entries(inputs)) feeds[name] = new this.#runtime.Tensor('float32', data, shape);
    const results = await this.#session.run(feeds);
    return Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name.replace(/ out$/, ''), tensor.data as Float32Array]));
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}
