export * from '../tools/group.ts';
