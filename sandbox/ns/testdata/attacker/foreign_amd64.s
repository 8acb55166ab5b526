TEXT ·foreign(SB), $0-0
	MOVL $20, AX
	INT $0x80
	RET
