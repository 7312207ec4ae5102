// The worker: the measurement behind Comlink, and what nobody catches told to the page.
import { expose } from 'comlink';
import { Measurement } from './measurement.ts';

// An error outside a call reaches the page as the worker's "error" event; a rejection does only if it is thrown once more.
self.addEventListener('unhandledrejection', event => {
  event.preventDefault();
  setTimeout(() => {
    throw event.reason;
  });
});

expose(new Measurement());
