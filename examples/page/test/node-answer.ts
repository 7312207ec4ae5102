// The same questions to the same engine in Node, over ONNX Runtime's build for Node. Imported as a bundle (`nodeEngine`).

import { blobSource, Chat, openGguf, type Transcript } from '@nsnquant/gguf';
import { type CodecName, openBackend } from 'nsnquant';
import { InferenceSession, Tensor } from 'onnxruntime-web';
import { NsnCache } from '../../../bench/llm/caches/nsn.ts';
import type { File } from './browser.ts';

export interface Step {
  readonly keys: CodecName;
  readonly values: CodecName;
  readonly questions: readonly string[];
}

/** One conversation; every step goes on with it in a new cache. */
export async function answersInNode(file: File, maxAnswer: number, steps: readonly Step[]): Promise<string[]> {
  const model = await openGguf(blobSource(new Blob([file.bytes as Uint8Array<ArrayBuffer>]), file.name), {
    runtime: { InferenceSession, Tensor }
  });
  const backend = await openBackend();
  const capacity = model.config.context;
  const answers: string[] = [];
  let transcript: Transcript = { messages: [], tokens: [] };
  for (const { keys, values, questions } of steps) {
    const cache = new NsnCache(backend, model.config, {
      keys,
      values,
      capacity,
      maxAppend: 64,
      sinks: 4,
      recent: 0,
      rope: true,
      balance: 'learn'
    });
    const chat = new Chat(model, cache, { maxAnswer, temperature: 0, topP: 1, random: Math.random });
    chat.resume({ ...transcript, tokens: [] });
    for (const question of questions) {
      let answer = '';
      for await (const piece of chat.ask(question)) answer += piece;
      answers.push(answer);
    }
    transcript = chat.transcript;
    cache.dispose();
  }
  await model.release();
  return answers;
}
