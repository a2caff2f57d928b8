/* What is callable from Python. */
#ifndef BITMAPS_EXPORT_H
#define BITMAPS_EXPORT_H

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#endif
