export { codecs } from 'nsnquant';
