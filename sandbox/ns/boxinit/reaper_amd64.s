#include "textflag.h"

// See reaper.go, also for the numbers.

// func reaperCode() *byte
TEXT ·reaperCode(SB), NOSPLIT, $0-8
	LEAQ reaper<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

TEXT reaper<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVL $0x10078, BX
	MOVLQZX (BX), R12 // the command
	MOVLQZX 4(BX), R13 // the line
	LEAQ -64(SP), R15
	MOVL $4, DI // PR_SET_DUMPABLE
	XORL SI, SI
	MOVL $157, AX // prctl
	SYSCALL
	MOVQ R13, DI
	LEAQ 8(BX), SI // the word that says so
	MOVL $1, DX
	MOVL $1, AX // write
	SYSCALL

again:
	MOVQ $-1, DI
	LEAQ 1(R15), SI
	XORL DX, DX
	XORL R10, R10
	MOVL $61, AX // wait4
	SYSCALL
	CMPQ AX, $-4 // EINTR
	JEQ  again
	CMPQ AX, $0
	JLT  lost
	CMPQ AX, R12
	JNE  again

	MOVB 9(BX), AX // the word that says so
	MOVB AX, (R15)
	MOVQ R13, DI
	MOVQ R15, SI
	MOVL $5, DX
	MOVL $1, AX // write
	SYSCALL
	XORL DI, DI
	MOVL $231, AX // exit_group
	SYSCALL

lost:
	MOVL $1, DI
	MOVL $231, AX // exit_group
	SYSCALL
	INT  $3
