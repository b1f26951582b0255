#include "textflag.h"

// Both routines keep two sums per 64-bit lane: one of the words, which may wrap
// around, and one of their high halves, which cannot (each is below 2^32). The
// sum of the low halves is the first minus the second shifted left by 32. It is
// exact, since the first is only off by multiples of 2^64. This takes
// three vector instructions per 32 bytes, instead of four for masking both halves.
//
// Y0-Y3 hold the sums of the words, Y4-Y7 those of the high halves, Y8-Y15 the data.

// REDUCE adds Y0-Y7 up into AX. It clobbers Y0-Y8.
#define REDUCE \
	VPADDQ Y1, Y0, Y0     \
	VPADDQ Y3, Y2, Y2     \
	VPADDQ Y2, Y0, Y0     \
	VPADDQ Y5, Y4, Y4     \
	VPADDQ Y7, Y6, Y6     \
	VPADDQ Y6, Y4, Y4     \
	VPSLLQ $32, Y4, Y8    \
	VPSUBQ Y8, Y0, Y0     \
	VPADDQ Y4, Y0, Y0     \
	VEXTRACTI128 $1, Y0, X1 \
	VPADDQ X1, X0, X0     \
	VPSRLDQ $8, X0, X1    \
	VPADDQ X1, X0, X0     \
	VMOVQ  X0, AX         \
	VZEROUPPER

#define CLEAR \
	VPXOR Y0, Y0, Y0 \
	VPXOR Y1, Y1, Y1 \
	VPXOR Y2, Y2, Y2 \
	VPXOR Y3, Y3, Y3 \
	VPXOR Y4, Y4, Y4 \
	VPXOR Y5, Y5, Y5 \
	VPXOR Y6, Y6, Y6 \
	VPXOR Y7, Y7, Y7

#define ADD128 \
	VPADDQ Y8, Y0, Y0    \
	VPADDQ Y9, Y1, Y1    \
	VPADDQ Y10, Y2, Y2   \
	VPADDQ Y11, Y3, Y3   \
	VPSRLQ $32, Y8, Y12  \
	VPSRLQ $32, Y9, Y13  \
	VPSRLQ $32, Y10, Y14 \
	VPSRLQ $32, Y11, Y15 \
	VPADDQ Y12, Y4, Y4   \
	VPADDQ Y13, Y5, Y5   \
	VPADDQ Y14, Y6, Y6   \
	VPADDQ Y15, Y7, Y7

#define ADD32 \
	VPADDQ Y8, Y0, Y0   \
	VPSRLQ $32, Y8, Y12 \
	VPADDQ Y12, Y4, Y4

// func sumBlocksAVX2(b []byte) uint64
TEXT ·sumBlocksAVX2(SB), NOSPLIT, $0-32
	MOVQ b_base+0(FP), SI
	MOVQ b_len+8(FP), CX
	CLEAR
	SUBQ $128, CX
	JLT  rest

loop:
	VMOVDQU (SI), Y8
	VMOVDQU 32(SI), Y9
	VMOVDQU 64(SI), Y10
	VMOVDQU 96(SI), Y11
	ADD128
	ADDQ    $128, SI
	SUBQ    $128, CX
	JGE     loop

rest:
	ADDQ $128, CX
	JEQ  done

last:
	VMOVDQU (SI), Y8
	ADD32
	ADDQ    $32, SI
	SUBQ    $32, CX
	JNE     last

done:
	REDUCE
	MOVQ AX, ret+24(FP)
	RET

// func copySumBlocksAVX2(dst, src []byte) uint64
//
// Each iteration loads all its bytes before it stores any, in ascending order.
// So no store overwrites a byte of src that is not yet loaded, unless dst starts
// after src.
TEXT ·copySumBlocksAVX2(SB), NOSPLIT, $0-56
	MOVQ dst_base+0(FP), DI
	MOVQ src_base+24(FP), SI
	MOVQ src_len+32(FP), CX
	CLEAR
	SUBQ $128, CX
	JLT  rest

loop:
	VMOVDQU (SI), Y8
	VMOVDQU 32(SI), Y9
	VMOVDQU 64(SI), Y10
	VMOVDQU 96(SI), Y11
	VMOVDQU Y8, (DI)
	VMOVDQU Y9, 32(DI)
	VMOVDQU Y10, 64(DI)
	VMOVDQU Y11, 96(DI)
	ADD128
	ADDQ    $128, SI
	ADDQ    $128, DI
	SUBQ    $128, CX
	JGE     loop

rest:
	ADDQ $128, CX
	JEQ  done

last:
	VMOVDQU (SI), Y8
	VMOVDQU Y8, (DI)
	ADD32
	ADDQ    $32, SI
	ADDQ    $32, DI
	SUBQ    $32, CX
	JNE     last

done:
	REDUCE
	MOVQ AX, ret+48(FP)
	RET
