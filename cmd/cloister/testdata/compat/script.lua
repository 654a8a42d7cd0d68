-- Tables, closures, coroutines, the collector, patterns, files, 64-bit integers, errors.
local function sieve(n)
  local c, p = {}, {}
  for i = 2, n do
    if not c[i] then
      p[#p + 1] = i
      for k = i * i, n, i do c[k] = true end
    end
  end
  return p
end
local p = sieve(200000)
print(#p, p[#p], _VERSION)
local co = coroutine.wrap(function() local a, b = 0, 1 while true do coroutine.yield(a) a, b = b, a + b end end)
local last
for _ = 1, 91 do last = co() end
print(last, last // 7, last & 0xffff, last << 3, math.maxinteger + 1 == math.mininteger)
local weak, kept = setmetatable({}, { __mode = "v", __gc = function() end }), {}
for i = 1, 50000 do local t = { i, tostring(i) }; weak[i] = t; if i % 100 == 0 then kept[#kept + 1] = t end end
collectgarbage(); collectgarbage()
local n = 0
for _ in pairs(weak) do n = n + 1 end
print("alive", n, #kept)
local words = {}
for w in ("the quick brown fox jumps over the lazy dog the end"):gmatch("%a+") do words[w] = (words[w] or 0) + 1 end
print(words.the, ("x=1,y=22"):gsub("(%w)=(%d+)", "%2=%1"), ("%5.2f|%-6s|%q"):format(math.pi, "ab", "a\n\0b"))
print(pcall(function() local t = nil; return t.x end))
print(pcall(error, { code = 7 }), select("#", table.unpack({ 1, nil, 3 }, 1, 3)))
local name = arg[1]
local f = assert(io.open(name, "w"))
for i = 1, 2000 do f:write(i, " ", i * i, "\n") end
f:close()
local sum = 0
for line in io.lines(name) do local a, b = line:match("(%d+) (%d+)"); sum = sum + a + b end
print(sum, os.rename(name, name .. ".old"), io.open(name))
f = io.open(name .. ".old", "r+b"); print(f:seek("end"), f:seek("set", 10), f:read(7, "n", "l")); f:close()
print(string.pack(">i4z", 258, "hi"):byte(1, -1))
print(os.remove(name .. ".old"), os.date("!%Y-%m-%d", 86400 * 365))
for line in io.stdin:lines() do io.write("[", line, "]") end
print()
error("the end")
