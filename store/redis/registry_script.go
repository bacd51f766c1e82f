package redis

import (
	"context"
	"crypto/sha1" // names a script, as EVALSHA demands
	"encoding/hex"

	"github.com/redis/rueidis"
)

// A script runs in the server, in one atomic step, on one key. So it works on a Cluster
// as well, whatever the key's name.
type script struct{ text, sha string }

func newScript(parts ...string) *script {
	var text string
	for _, part := range parts {
		text += part
	}
	sum := sha1.Sum([]byte(text))
	return &script{text, hex.EncodeToString(sum[:])}
}

// A call is a script or a plain command, on one key.
type call struct {
	script  *script
	command string // if script is nil
	key     string
	args    []string
}

// do sends calls as one batch, which is not atomic, and returns their results in order.
// A script that a server does not know has changed nothing there, and is sent again with
// its text; no call is sent twice otherwise.
func (s *Store) do(ctx context.Context, calls ...call) []rueidis.RedisResult {
	if len(calls) == 0 {
		return nil
	}
	client := s.redis()
	cmds := make(rueidis.Commands, len(calls))
	for i, c := range calls {
		if c.script == nil {
			cmds[i] = client.B().Arbitrary(c.command).Keys(c.key).Args(c.args...).Build()
		} else {
			cmds[i] = client.B().Evalsha().Sha1(c.script.sha).Numkeys(1).Key(c.key).Arg(c.args...).Build()
		}
	}
	results := client.DoMulti(ctx, cmds...)

	var again rueidis.Commands
	var at []int
	for i, r := range results {
		if e, ok := rueidis.IsRedisErr(r.Error()); ok && e.IsNoScript() {
			c := calls[i]
			again = append(again, client.B().Eval().Script(c.script.text).Numkeys(1).Key(c.key).Arg(c.args...).Build())
			at = append(at, i)
		}
	}
	if len(again) > 0 {
		for i, r := range client.DoMulti(ctx, again...) {
			results[at[i]] = r
		}
	}
	return results
}

// doAll is do for calls of which only the first error matters.
func (s *Store) doAll(ctx context.Context, calls ...call) error {
	for _, r := range s.do(ctx, calls...) {
		if err := r.Error(); err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
	}
	return nil
}

// What every script may use. clock is the server's, in milliseconds. keep makes the key
// live that much longer, and never shortens its life. rewrite comes before the writes of a
// script that only changes what is there: a server that is out of memory refuses a script's
// first write if that might need some, and none after one that can't. So people can be
// signed out, and stay signed in, on a full server.
const luaCommon = `
local function rewrite()
	local left = redis.call('PTTL', KEYS[1])
	if left > 0 then redis.call('PEXPIRE', KEYS[1], left) end
end
local function clock()
	local t = redis.call('TIME')
	return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function keep(life)
	if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], life) end
end
`

// How an entry lies in its user's hash: see packed in registry_entry.go. A script reads
// all it decides on before it writes, so that a server that is out of memory refuses it
// whole.
const luaEntry = luaCommon + `
local layout = '>I6I6I6I6I6Bc0Bc0Bc0'
local function open(packed)
	local e, at = {}, 0
	e.expires, e.started, e.seen, e.listed, e.left, e.ending, e.seat, e.app, at = struct.unpack(layout, packed)
	e.rest = string.sub(packed, at)
	return e
end
local function save(id, e)
	local packed = struct.pack(layout, e.expires, e.started, e.seen, e.listed, e.left,
		#e.ending, e.ending, #e.seat, e.seat, #e.app, e.app) .. e.rest
	redis.call('HSET', KEYS[1], id, packed)
	return packed
end
local function mark(e, reason, now, patience)
	if e.ending == '' then e.ending, e.left = reason, now + patience end
end
`

// admitScript is Admit's step on its user's hash. It answers
//
//	admitted, seat, then pairs: an ID and its ending entry, or an ID and "" where the
//	  reaper should have come long ago
//	needs seat, where nobody's can be taken over and none was reserved, or per_user, or
//	  per_app; and 1 if an entry of this ID was listed before
//
// and changes something only in the first case.
var admitScript = newScript(luaEntry, `
local id, ttl, listed, app, rest = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local replaces, reserved = ARGV[6], ARGV[7] == '1'
local per_user, per_app, on_limit = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
local patience, grace, overdue = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local now = clock()

local all = redis.call('HGETALL', KEYS[1])
local counted, ending, late, same_app, old, replaced = {}, {}, {}, 0, nil, nil
for i = 1, #all, 2 do
	local e = open(all[i + 1])
	e.id, e.packed = all[i], all[i + 1]
	if e.id == id then
		old = e
	elseif e.id == replaces then
		replaced = e
	elseif e.ending ~= '' then
		ending[#ending + 1] = e
	elseif e.expires > now then
		counted[#counted + 1] = e
		if e.app == app then same_app = same_app + 1 end
	elseif e.expires + overdue <= now then
		late[#late + 1] = e.id
	end
end

local function over(n, limit)
	if limit <= 0 then return 0 end
	return math.max(n + 1 - limit, 0)
end
local of_user, of_app = over(#counted, per_user), over(same_app, per_app)
if on_limit ~= 'evict_oldest' and on_limit ~= 'evict_idle' then
	if of_user > 0 then return {'per_user', old and 1 or 0} end
	if of_app > 0 then return {'per_app', old and 1 or 0} end
end

-- The new entry takes over the seat of the one that it overwrites or replaces. A seat of
-- '=' is called like its entry, one of '' is somebody else's now, and one that begins
-- with '!' is being given back.
local seat = reserved and '=' or ''
local function heir(e)
	return e and e.expires > now and e.seat ~= '' and string.sub(e.seat, 1, 1) ~= '!'
end
if heir(old) then
	seat = old.seat
elseif heir(replaced) then
	seat = replaced.seat == '=' and replaced.id or replaced.seat
	replaced.seat = ''
end
if seat == '' then return {'needs seat', old and 1 or 0} end

-- Whoever goes for the app's sake also makes room for the user.
if of_user + of_app > 0 then
	local by = on_limit == 'evict_idle' and 'seen' or 'started'
	table.sort(counted, function(a, b)
		if a[by] ~= b[by] then return a[by] < b[by] end
		return a.id < b.id
	end)
	of_user = of_user - of_app
	for _, e in ipairs(counted) do
		if of_app > 0 and e.app == app then
			mark(e, 'evicted', now, patience)
			of_app = of_app - 1
		end
	end
	for _, e in ipairs(counted) do
		if of_user > 0 and e.ending == '' then
			mark(e, 'evicted', now, patience)
			of_user = of_user - 1
		end
	end
end

for _, e in ipairs(counted) do
	if e.ending ~= '' then
		e.packed = save(e.id, e)
		ending[#ending + 1] = e
	end
end
if replaced then
	mark(replaced, 'replaced', now, patience)
	replaced.packed = save(replaced.id, replaced)
	ending[#ending + 1] = replaced
end
local answer = {'admitted', seat}
for _, e in ipairs(ending) do
	answer[#answer + 1] = e.id
	answer[#answer + 1] = e.packed
end
for _, id in ipairs(late) do
	answer[#answer + 1] = id
	answer[#answer + 1] = ''
end
save(id, {expires = now + ttl, started = now, seen = now, listed = now + listed, left = 0,
	ending = '', seat = seat, app = app, rest = rest})
keep(ttl + grace)
return answer
`)

// renewScript is Renew's step on its user's hash. It answers done, or, having changed
// nothing, ending or list; and the seat. It says list where the indexes have to be written
// first, and ARGV[3] does not say until when they were.
var renewScript = newScript(luaEntry, `
local id, ttl, listed, app, rest, grace = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5], tonumber(ARGV[6])
local now = clock()
local e = {expires = 0, started = now, listed = 0, left = 0, ending = '', seat = '=', app = app, rest = rest}
local packed = redis.call('HGET', KEYS[1], id)
if packed then e = open(packed) end
if e.ending ~= '' then return {'ending', e.seat} end
e.seen, e.expires = now, math.max(e.expires, now + ttl)
if listed > 0 then
	e.listed = math.max(e.listed, now + listed)
elseif e.expires > e.listed then
	return {'list', e.seat}
end
rewrite()
save(id, e)
keep(e.expires - now + grace)
return {'done', e.seat}
`)

// endScript marks an entry as ending and answers it, or nothing where none is listed.
var endScript = newScript(luaEntry, `
local packed = redis.call('HGET', KEYS[1], ARGV[1])
if not packed then return false end
local e = open(packed)
if e.ending ~= '' then return packed end
mark(e, ARGV[2], clock(), tonumber(ARGV[3]))
rewrite()
return save(ARGV[1], e)
`)

// leaveScript is the first half of Remove: it answers the entry's seat, which nobody takes
// over any more, or nothing where none is listed.
var leaveScript = newScript(luaEntry, `
local packed = redis.call('HGET', KEYS[1], ARGV[1])
if not packed then return false end
local e = open(packed)
mark(e, ARGV[2], clock(), tonumber(ARGV[3]))
if e.seat ~= '' and string.sub(e.seat, 1, 1) ~= '!' then
	e.seat = '!' .. e.seat
	rewrite()
	save(ARGV[1], e)
end
return e.seat
`)

// claimScript answers gone, or look and in how many milliseconds, or claimed and the
// entry.
var claimScript = newScript(luaEntry, `
local packed = redis.call('HGET', KEYS[1], ARGV[1])
if not packed then return {'gone'} end
local e, now = open(packed), clock()
local due = e.ending == '' and e.expires or e.left
if due > now then return {'look', due - now} end
mark(e, ARGV[2], now, 0)
e.left = now + ARGV[3]
rewrite()
packed = save(ARGV[1], e)
keep(tonumber(ARGV[4]))
return {'claimed', packed}
`)

// readScript answers the time and the entries called by ARGV, or nothing in their places.
var readScript = newScript(luaCommon, `
local entries = redis.call('HMGET', KEYS[1], unpack(ARGV))
table.insert(entries, 1, clock())
return entries
`)

// scanScript answers the time, the next cursor and a page of a user's entries.
var scanScript = newScript(luaCommon, `
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
return {clock(), page[1], page[2]}
`)

// listScript adds ARGV[1] to an index whose members are scored by the time until when they
// count: ARGV[2] from now, and never earlier than before. Members whose time is over are
// trimmed in passing, a few at a time.
var listScript = newScript(luaCommon, luaTrim, `
local now = clock()
local ends, was = now + ARGV[2], redis.call('ZSCORE', KEYS[1], ARGV[1])
if was then rewrite() end
if not was or tonumber(was) < ends then redis.call('ZADD', KEYS[1], ends, ARGV[1]) end
trim(now)
keep(tonumber(ARGV[2]))
`)

// listNameScript is listScript for the index by ID, where ARGV[1] is the user.
var listNameScript = newScript(luaCommon, `
rewrite()
redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
keep(tonumber(ARGV[2]))
`)

const luaTrim = `
local function trim(now)
	local over = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 16)
	if #over > 0 then redis.call('ZREM', KEYS[1], unpack(over)) end
end
`

// seatScript reserves the seat called ARGV[1] for ARGV[2] if fewer than ARGV[3] are taken.
// It answers 1 if it did, 0 if not, and 2 if that seat is taken already and stays so.
var seatScript = newScript(luaCommon, luaTrim, `
local now = clock()
local was = redis.call('ZSCORE', KEYS[1], ARGV[1])
if was and tonumber(was) > now then return 2 end
if redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf') >= tonumber(ARGV[3]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
trim(now)
keep(tonumber(ARGV[2]))
return 1
`)

// pageScript answers where the next page begins, or "", and the members of one page of
// about ARGV[2]. ARGV[1] is what the page before answered, or "". A page ends between two
// milliseconds, and scores only grow, so that no member is passed over.
var pageScript = newScript(luaCommon, `
local from, n = ARGV[1], tonumber(ARGV[2])
if from == '' then from = '(' .. clock() end
local page = redis.call('ZRANGEBYSCORE', KEYS[1], from, '+inf', 'WITHSCORES', 'LIMIT', 0, n)
local answer, last = {''}, nil
if #page == 2 * n then
	last = page[#page]
	answer[1] = '(' .. last
end
for i = 1, #page, 2 do
	if page[i + 1] ~= last then answer[#answer + 1] = page[i] end
end
if last then
	for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], last, last)) do
		answer[#answer + 1] = member
	end
end
return answer
`)

// lookScript makes the reaper look at ARGV[1] in ARGV[2], and at no other time.
var lookScript = newScript(luaCommon, `
rewrite()
redis.call('ZADD', KEYS[1], clock() + ARGV[2], ARGV[1])
keep(ARGV[2] + ARGV[3])
`)

// lookAgainScript is lookScript for a reaper that claimed ARGV[1] and got the score
// ARGV[4] for it; a negative ARGV[2] takes it off the index. It does nothing where
// somebody else has written since.
var lookAgainScript = newScript(luaCommon, `
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) ~= tonumber(ARGV[4]) then return end
rewrite()
if tonumber(ARGV[2]) < 0 then
	redis.call('ZREM', KEYS[1], ARGV[1])
else
	redis.call('ZADD', KEYS[1], clock() + ARGV[2], ARGV[1])
	keep(ARGV[2] + ARGV[3])
end
`)

// dueScript answers how many members the reaper has to look at.
var dueScript = newScript(luaCommon, `
return redis.call('ZCOUNT', KEYS[1], '-inf', clock())
`)

// claimDueScript answers up to ARGV[1] of those, behind the score that keeps them from
// others for ARGV[2].
var claimDueScript = newScript(luaCommon, `
local now = clock()
local score = string.format('%.0f', now + ARGV[2])
local answer = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
rewrite()
for _, member in ipairs(answer) do redis.call('ZADD', KEYS[1], score, member) end
if #answer > 0 then keep(ARGV[2] + ARGV[3]) end
table.insert(answer, 1, score)
return answer
`)
