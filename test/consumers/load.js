// A module of this folder, so that names mean this folder's packages: the tests themselves lie where others are found.
export const load = name => import(name);
