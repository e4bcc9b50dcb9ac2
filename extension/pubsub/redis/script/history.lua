-- KEYS: the topic.
-- ARGV: number of messages to keep, 0 for a topic without history; age, idle, fresh epoch, persistent, whether to begin a topic;
-- the epoch and offset that are asked from, epoch 0 for none; limit, 0 for all, negative for none; offset at which to go on, 0 for
-- the first page; number and bytes after which a page ends.
-- Returns epoch, last offset, whether nothing is missing before the first message, offsets and records in turn, and whether the
-- topic has begun with this. Epoch 0: there is no topic.
local keep, age = tonumber(ARGV[1]), tonumber(ARGV[2])
if not open(KEYS[1], ARGV[6] == '1', ARGV[4], ARGV[5] == '1') then return {0, 0, 0, {}, 0} end
if keep > 0 then
	if age > 0 then trim(KEYS[1], age) end
	live(KEYS[1], age, tonumber(ARGV[3]))
end
local from, limit, at = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local complete = 0
if at == 0 then
	if ARGV[7] == topic.epoch and from <= topic.offset then
		at = from + 1
		local entry = redis.call('XRANGE', KEYS[1], int(at), '+', 'COUNT', 1)[1]
		if from == topic.offset or entry and offset(entry[1]) == at then complete = 1 end
	elseif ARGV[7] == '0' and limit > 0 then
		at = topic.offset - limit + 1
	end
	at = math.max(at, 0)
end
local page, n, size = {}, 0, 0
while limit >= 0 and at <= topic.offset and n < tonumber(ARGV[11]) and size < tonumber(ARGV[12]) do
	local entries = redis.call('XRANGE', KEYS[1], int(at), '+', 'COUNT', 16)
	if #entries == 0 then break end
	for _, entry in ipairs(entries) do
		page[#page + 1] = offset(entry[1])
		page[#page + 1] = entry[2][2]
		n, size = n + 1, size + #entry[2][2]
	end
	at = page[#page - 1] + 1
end
return {tonumber(topic.epoch), topic.offset, complete, page, topic.begun}
