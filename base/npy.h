/* npy.h: NumPy's arrays as tensors.
 *
 * What numpy.save and numpy.savez write: one array, which is named after its
 * file, or a zip archive of them, each under its own name. The file is read
 * into memory; arrays of the other byte order or in Fortran's order are put
 * right there, so that a tensor is what a safetensors file would hold.
 * numpy has no BF16: two bytes of no type ('V2') are taken as that, which is
 * what ml_dtypes writes. Refused: objects, records, text, complex numbers,
 * compressed archives (numpy.savez_compressed), archives beyond 4 GB. */
#ifndef BASE_NPY_H
#define BASE_NPY_H

#include "safetensors.h"

/* By the path's end: .npy, .npz; anything else goes to st_open. Closed by
 * st_close. */
int npy_open(Safetensors *st, const char *path, Error *err);

#endif
