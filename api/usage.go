package api

import (
	"encoding/json"
	"strconv"
)

// Money is an amount in whole cents of US dollars.
type Money struct {
	Amount   string `json:"amount"`
	Currency string `json:"currency"`
}

// Cost is an exact amount in billionths of a US dollar. Prices per million tokens
// in cents stay whole numbers in it.
type Cost int64

const (
	nanosPerCent = 10_000_000
	// costMaxCents keeps sums far from overflow.
	costMaxCents = 100_000_000
)

// Money rounds c to the nearest cent.
func (c Cost) Money() Money {
	return Money{strconv.FormatInt((int64(c)+nanosPerCent/2)/nanosPerCent, 10), "USD"}
}

// A Budget is the ceiling on what a session may cost at list price.
type Budget struct {
	Type        string `json:"type"` // "limit"
	MaxListCost Money  `json:"max_list_cost"`
}

// Limit returns the ceiling as an exact cost.
func (b *Budget) Limit() Cost {
	cents, err := strconv.ParseInt(b.MaxListCost.Amount, 10, 64)
	if err != nil {
		panic("api: Limit of an unchecked budget")
	}
	return Cost(cents * nanosPerCent)
}

// Check refuses anything but a positive whole number of cents in USD.
func (b *Budget) Check() error {
	if b.Type != "limit" {
		return Invalid("budget.type: must be \"limit\"")
	}
	a := b.MaxListCost.Amount
	cents, err := strconv.ParseInt(a, 10, 64)
	if err != nil || cents <= 0 || cents > costMaxCents || strconv.FormatInt(cents, 10) != a {
		return Invalid("budget.max_list_cost.amount: must be a positive whole number of cents without leading zeros, as a string")
	}
	if b.MaxListCost.Currency != "USD" {
		return Invalid("budget.max_list_cost.currency: must be \"USD\"")
	}
	return nil
}

// Tokens are the counters of model use.
type Tokens struct {
	Input         int64
	Output        int64
	CacheRead     int64
	CacheCreate5m int64
	CacheCreate1h int64
}

// Add returns the sum of t and u.
func (t Tokens) Add(u Tokens) Tokens {
	return Tokens{
		t.Input + u.Input, t.Output + u.Output, t.CacheRead + u.CacheRead,
		t.CacheCreate5m + u.CacheCreate5m, t.CacheCreate1h + u.CacheCreate1h,
	}
}

// Usage is what a session has used so far.
type Usage struct {
	Tokens        Tokens
	ListCost      *Cost // nil while a model without a known price was used
	ActiveSeconds float64
}

type cacheCreationJSON struct {
	Ephemeral5m int64 `json:"ephemeral_5m_input_tokens"`
	Ephemeral1h int64 `json:"ephemeral_1h_input_tokens"`
}

type usageJSON struct {
	InputTokens          int64             `json:"input_tokens"`
	OutputTokens         int64             `json:"output_tokens"`
	CacheReadInputTokens int64             `json:"cache_read_input_tokens"`
	CacheCreation        cacheCreationJSON `json:"cache_creation"`
	ListCost             *Money            `json:"list_cost"`
	ActiveSeconds        float64           `json:"active_seconds"`
}

func (u Usage) MarshalJSON() ([]byte, error) {
	t := u.Tokens
	j := usageJSON{
		InputTokens: t.Input, OutputTokens: t.Output, CacheReadInputTokens: t.CacheRead,
		CacheCreation: cacheCreationJSON{t.CacheCreate5m, t.CacheCreate1h},
		ActiveSeconds: u.ActiveSeconds,
	}
	if u.ListCost != nil {
		m := u.ListCost.Money()
		j.ListCost = &m
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads the public form back; ListCost is then rounded to a cent.
func (u *Usage) UnmarshalJSON(data []byte) error {
	var j usageJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	*u = Usage{
		Tokens:        Tokens{j.InputTokens, j.OutputTokens, j.CacheReadInputTokens, j.CacheCreation.Ephemeral5m, j.CacheCreation.Ephemeral1h},
		ActiveSeconds: j.ActiveSeconds,
	}
	if j.ListCost != nil {
		cents, err := strconv.ParseInt(j.ListCost.Amount, 10, 64)
		if err != nil {
			return err
		}
		c := Cost(cents * nanosPerCent)
		u.ListCost = &c
	}
	return nil
}

// SpanUsage is what one model request used.
type SpanUsage struct {
	InputTokens              int64 `json:"input_tokens"`
	OutputTokens             int64 `json:"output_tokens"`
	CacheCreationInputTokens int64 `json:"cache_creation_input_tokens"`
	CacheReadInputTokens     int64 `json:"cache_read_input_tokens"`
}

// Span returns t in the form of a span event.
func (t Tokens) Span() SpanUsage {
	return SpanUsage{t.Input, t.Output, t.CacheCreate5m + t.CacheCreate1h, t.CacheRead}
}
