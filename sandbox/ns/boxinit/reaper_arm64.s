#include "textflag.h"

// See reaper.go, also for the numbers.

// func reaperCode() *byte
TEXT ·reaperCode(SB), NOSPLIT, $0-8
	MOVD $reaper<>(SB), R0
	MOVD R0, ret+0(FP)
	RET

TEXT reaper<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVD  $0x10078, R19
	MOVWU (R19), R20 // the command
	MOVWU 4(R19), R21 // the line
	MOVD  RSP, R23
	SUB   $64, R23
	MOVD  $4, R0 // PR_SET_DUMPABLE
	MOVD  $0, R1
	MOVD  $167, R8 // prctl
	SVC
	MOVD  R21, R0
	ADD   $8, R19, R1 // the word that says so
	MOVD  $1, R2
	MOVD  $64, R8 // write
	SVC

again:
	MOVD $-1, R0
	ADD  $4, R23, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $260, R8 // wait4
	SVC
	CMN  $4, R0 // EINTR
	BEQ  again
	CMP  $0, R0
	BLT  lost
	CMP  R20, R0
	BNE  again

	MOVBU 9(R19), R0 // the word that says so
	MOVB R0, 3(R23)
	MOVD R21, R0
	ADD  $3, R23, R1
	MOVD $5, R2
	MOVD $64, R8 // write
	SVC
	MOVD $0, R0
	MOVD $94, R8 // exit_group
	SVC

lost:
	MOVD $1, R0
	MOVD $94, R8 // exit_group
	SVC
	BRK
