package control

import (
	"strings"

	"github.com/bailey-platform/bailey/api"
)

// Prices are list prices by model id. An id ending in * is a prefix; the longest
// that matches wins.
type Prices map[string]Price

// A Price is what a million tokens cost, in cents of US dollars. Cache writes cost
// 1.25 (five minutes) and 2 (one hour) times the input, cache reads a tenth.
type Price struct {
	Input  int64 `yaml:"input"`
	Output int64 `yaml:"output"`
}

// builtinPrices are public list prices of Anthropic's 4.5 generation. Other models
// are priced by configuration; a model without a price cannot be budgeted.
var builtinPrices = Prices{
	"claude-opus-4-5*":   {Input: 500, Output: 2500},
	"claude-sonnet-4-5*": {Input: 300, Output: 1500},
	"claude-haiku-4-5*":  {Input: 100, Output: 500},
}

func (p Prices) find(model string) (Price, bool) {
	if price, ok := p[model]; ok {
		return price, true
	}
	best := ""
	for id := range p {
		if prefix, ok := strings.CutSuffix(id, "*"); ok && strings.HasPrefix(model, prefix) && len(id) > len(best) {
			best = id
		}
	}
	return p[best], best != ""
}

// price is the list cost of tokens. ok is false for a model without a known
// price.
func (c *Control) price(model string, t api.Tokens) (cost api.Cost, ok bool) {
	for _, sheet := range []Prices{c.cfg.Prices, builtinPrices} {
		if p, ok := sheet.find(model); ok {
			return p.cost(t), true
		}
	}
	return 0, false
}

// cost is rounded down to a billionth of a dollar: a cent per million tokens is
// ten of those a token.
func (p Price) cost(t api.Tokens) api.Cost {
	const nanosPerToken = 10 // of one cent per million
	sum := p.Output*t.Output*nanosPerToken + p.Input*t.Input*nanosPerToken
	sum += p.Input * t.CacheRead * nanosPerToken / 10
	sum += p.Input * t.CacheCreate5m * nanosPerToken * 5 / 4
	sum += p.Input * t.CacheCreate1h * nanosPerToken * 2
	return api.Cost(sum)
}
