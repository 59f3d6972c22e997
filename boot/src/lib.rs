//! Pure parsers of what a boot loader hands over: multiboot2, ACPI, ELF, bzImage, command lines.
#![no_std]
#![forbid(unsafe_code)]
