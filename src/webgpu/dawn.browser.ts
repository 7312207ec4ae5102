// In place of dawn.ts where a bundler builds for browsers.

import { BackendError } from '../backend.ts';

export function dawn(): never {
  throw new BackendError('webgpu', 'expected navigator.gpu, got none');
}
