#include "textflag.h"

// Both routines keep two sums per 64-bit lane: one of the words, which may wrap
// around, and one of their high halves, which cannot (each is below 2^32). The
// sum of the low halves is the first minus the second shifted left by 32. It is
// exact, since the first is only off by multiples of 2^64. With USRA, which
// shifts and adds, this takes two vector instructions per 16 bytes.
//
// V0-V3 hold the sums of the words, V4-V7 those of the high halves, V8-V11 the data.

// REDUCE adds V0-V7 up into R0. It clobbers V0-V8 and R1.
#define REDUCE \
	VADD V1.D2, V0.D2, V0.D2 \
	VADD V3.D2, V2.D2, V2.D2 \
	VADD V2.D2, V0.D2, V0.D2 \
	VADD V5.D2, V4.D2, V4.D2 \
	VADD V7.D2, V6.D2, V6.D2 \
	VADD V6.D2, V4.D2, V4.D2 \
	VSHL $32, V4.D2, V8.D2   \
	VSUB V8.D2, V0.D2, V0.D2 \
	VADD V4.D2, V0.D2, V0.D2 \
	VMOV V0.D[0], R0         \
	VMOV V0.D[1], R1         \
	ADD  R1, R0, R0

#define CLEAR \
	VEOR V0.B16, V0.B16, V0.B16 \
	VEOR V1.B16, V1.B16, V1.B16 \
	VEOR V2.B16, V2.B16, V2.B16 \
	VEOR V3.B16, V3.B16, V3.B16 \
	VEOR V4.B16, V4.B16, V4.B16 \
	VEOR V5.B16, V5.B16, V5.B16 \
	VEOR V6.B16, V6.B16, V6.B16 \
	VEOR V7.B16, V7.B16, V7.B16

#define ADD32 \
	VADD  V8.D2, V0.D2, V0.D2 \
	VADD  V9.D2, V1.D2, V1.D2 \
	VUSRA $32, V8.D2, V4.D2   \
	VUSRA $32, V9.D2, V5.D2

#define ADD64 \
	ADD32                      \
	VADD  V10.D2, V2.D2, V2.D2 \
	VADD  V11.D2, V3.D2, V3.D2 \
	VUSRA $32, V10.D2, V6.D2   \
	VUSRA $32, V11.D2, V7.D2

// func sumBlocksNEON(b []byte) uint64
TEXT ·sumBlocksNEON(SB), NOSPLIT, $0-32
	MOVD b_base+0(FP), R2
	MOVD b_len+8(FP), R3
	CLEAR
	SUBS $64, R3, R3
	BLT  rest

loop:
	VLD1.P 64(R2), [V8.D2, V9.D2, V10.D2, V11.D2]
	ADD64
	SUBS   $64, R3, R3
	BGE    loop

rest:
	ADDS   $64, R3, R3
	BEQ    done
	VLD1.P 32(R2), [V8.D2, V9.D2]
	ADD32

done:
	REDUCE
	MOVD R0, ret+24(FP)
	RET

// func copySumBlocksNEON(dst, src []byte) uint64
//
// Each iteration loads all its bytes before it stores any, in ascending order.
// So no store overwrites a byte of src that is not yet loaded, unless dst starts
// after src.
TEXT ·copySumBlocksNEON(SB), NOSPLIT, $0-56
	MOVD dst_base+0(FP), R4
	MOVD src_base+24(FP), R2
	MOVD src_len+32(FP), R3
	CLEAR
	SUBS $64, R3, R3
	BLT  rest

loop:
	VLD1.P 64(R2), [V8.D2, V9.D2, V10.D2, V11.D2]
	VST1.P [V8.D2, V9.D2, V10.D2, V11.D2], 64(R4)
	ADD64
	SUBS   $64, R3, R3
	BGE    loop

rest:
	ADDS   $64, R3, R3
	BEQ    done
	VLD1.P 32(R2), [V8.D2, V9.D2]
	VST1.P [V8.D2, V9.D2], 32(R4)
	ADD32

done:
	REDUCE
	MOVD R0, ret+48(FP)
	RET
